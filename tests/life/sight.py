"""What a caller sees of keys, aliases and ciphertexts, and what the model says that he has to see, in the same form."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kmsd.api.calendar import GET_CLOCK, GetClockRequest
from kmsd.api.files import DECRYPT_FILE, DecryptFileRequest
from kmsd.api.keys import DESCRIBE_KEY, LIST_ALIASES, LIST_KEYS, DescribeKeyRequest, ListAliasesRequest, ListKeysRequest
from kmsd.api.rotation import (
    GET_KEY_ROTATION_STATUS,
    LIST_KEY_ROTATIONS,
    GetKeyRotationStatusRequest,
    IncludeKeyMaterial,
    ListKeyRotationsRequest,
)
from kmsd.api.symmetric import DECRYPT, DecryptRequest
from tests.life.host import Answer, Asked, Host
from tests.life.model import PENDING, Ciphertext, Key, Model, RefusedError


class KeySight(NamedTuple):
    """A key as its operations tell of it; 0 stands for dates and a period that it has not."""

    state: str
    description: str
    deletion: int
    period: int
    next_rotation: int
    rotations: list[tuple[str, int]]


class Sight(NamedTuple):
    """Everything there is, and of some ciphertexts plaintext and version, or the code of the error."""

    clock: tuple[str, int]
    keys: dict[str, KeySight]
    aliases: dict[str, str]
    decrypted: list[tuple[bytes, int] | str]


def foreseen(model: Model, ciphertexts: Iterable[Ciphertext]) -> Sight:
    """Return what the model says."""
    return Sight(
        (model.clock.state, model.clock.certain),
        {name: key_foreseen(key) for name, key in model.keys.items()},
        dict(model.aliases),
        [_decrypted(model, one) for one in ciphertexts],
    )


def differences(seen: Sight, should: Sight) -> str:
    """Tell what there is in one and in the other."""
    keys = {name: (seen.keys.get(name), should.keys.get(name)) for name in seen.keys.keys() | should.keys.keys()}
    found = {
        "clock": (seen.clock, should.clock),
        "aliases": (seen.aliases, should.aliases),
        **keys,
        **{f"ciphertext {place}": one for place, one in enumerate(zip(seen.decrypted, should.decrypted, strict=True))},
    }
    return "; ".join(f"{what}: {one} and {other}" for what, (one, other) in found.items() if one != other)


def key_foreseen(key: Key) -> KeySight:
    """Return what the model says of a key; one that is to be destroyed is never rotated."""
    rotates = key.period and key.state != PENDING
    period, following = (key.period, key.next_rotation) if rotates else (0, 0)
    return KeySight(key.state, key.description, key.deletion, period, following, key.rotations)


def _decrypted(model: Model, ciphertext: Ciphertext) -> tuple[bytes, int] | str:
    try:
        return model.decrypt(ciphertext), ciphertext.version
    except RefusedError as refused:
        return str(refused)


def see(host: Host, ciphertexts: Sequence[Ciphertext]) -> Sight:
    """Look at everything, which takes an unsealed service."""
    keys, aliases, clock = host.ask_all(
        [
            Asked(LIST_KEYS, ListKeysRequest(limit=1000)),
            Asked(LIST_ALIASES, ListAliasesRequest(limit=100)),
            Asked(GET_CLOCK, GetClockRequest()),
        ]
    )
    answers = host.ask_all([decryption(one) for one in ciphertexts])
    seen = {one.key_id: _see_key(host, one.key_id) for one in keys.response.keys}
    return Sight(
        (clock.response.state, _ms(clock.response.certain)),
        {key_id: key for key_id, (key, _) in seen.items()},
        {one.alias_name: one.target_key_id for one in aliases.response.aliases},
        [
            answer.error or (plaintext_of(answer), _version_of(answer, one, seen[one.key][1]))
            for one, answer in zip(ciphertexts, answers, strict=True)
        ],
    )


def decryption(ciphertext: Ciphertext) -> Asked:
    """Return the request by which it is decrypted."""
    if ciphertext.is_file:
        return Asked(DECRYPT_FILE, DecryptFileRequest(header=ciphertext.blob))
    return Asked(DECRYPT, DecryptRequest(ciphertext_blob=ciphertext.blob))


def plaintext_of(answer: Answer) -> bytes:
    """Return what it was decrypted to."""
    return answer.message_key or bytes(answer.response.plaintext)


def _version_of(answer: Answer, ciphertext: Ciphertext, material_ids: list[str]) -> int:
    """Return which of a key's material decrypted it, which DecryptFile does not tell."""
    return ciphertext.version if ciphertext.is_file else material_ids.index(answer.response.key_material_id) + 1


def see_key(host: Host, key_id: str) -> KeySight:
    """Look at a key."""
    return _see_key(host, key_id)[0]


def _see_key(host: Host, key_id: str) -> tuple[KeySight, list[str]]:
    """Look at a key, and at the ids of its material."""
    everything = IncludeKeyMaterial.ALL_KEY_MATERIAL
    described, status, listed = (
        answer.response
        for answer in host.ask_all(
            [
                Asked(DESCRIBE_KEY, DescribeKeyRequest(key_id=key_id)),
                Asked(GET_KEY_ROTATION_STATUS, GetKeyRotationStatusRequest(key_id=key_id)),
                Asked(
                    LIST_KEY_ROTATIONS,
                    ListKeyRotationsRequest(key_id=key_id, include_key_material=everything, limit=1000),
                ),
            ]
        )
    )
    metadata = described.key_metadata
    material_ids = [one.key_material_id for one in listed.rotations]
    assert metadata.current_key_material_id == material_ids[-1]
    assert [one.key_material_state for one in listed.rotations[-2:]] == ["NON_CURRENT", "CURRENT"][-len(material_ids) :]
    assert metadata.enabled == (metadata.key_state == "Enabled")
    assert status.key_rotation_enabled == (status.next_rotation_date is not None)
    sight = KeySight(
        metadata.key_state,
        metadata.description,
        _ms(metadata.deletion_date),
        status.rotation_period_in_days or 0,
        _ms(status.next_rotation_date),
        [(one.rotation_type, _ms(one.rotation_date)) for one in listed.rotations[1:]],
    )
    return sight, material_ids


def _ms(date: dt.datetime | None) -> int:
    return 0 if date is None else round(date.timestamp() * 1000)
