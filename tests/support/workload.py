"""Random changes to a service, what it acknowledged, and whether that is still there: the view of a client.

The model is small on purpose: keys, aliases and ciphertexts that were acknowledged, and the trail, which has to tell of
exactly the keys and aliases that exist.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from kmsd.api.administration import GET_AUDIT_ANCHOR, GetAuditAnchorRequest
from kmsd.api.keys import (
    CREATE_ALIAS,
    CREATE_KEY,
    DESCRIBE_KEY,
    LIST_ALIASES,
    LIST_KEYS,
    CreateAliasRequest,
    CreateKeyRequest,
    DescribeKeyRequest,
    ListAliasesRequest,
    ListKeysRequest,
)
from kmsd.api.symmetric import DECRYPT, ENCRYPT, DecryptRequest, EncryptRequest
from kmsd.audit.anchors import read_anchors
from kmsd.audit.trail_check import check_trail as verify_trail
from kmsd_client.cli.audit_records import trail_file
from tests.support.assembled import AUDIT, Assembled

# So that the last runs do not take longer than the first, only so many of the older keys and ciphertexts are tried.
OLDER_TRIED = 8

_INTENT, _OUTCOME = "ApiCallIntent", "ApiCallOutcome"


class Told:
    """What was acknowledged: keys by their ARN, aliases and the ARN of their key, ciphertexts by their context.

    And what is remembered elsewhere: anchors of the trail, and what the token was told of each store.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.aliases: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.anchors: list[str] = []
        self.token: dict[str, int] = {}

    def copy(self) -> Told:
        other = Told()
        other.keys, other.aliases = self.keys.copy(), self.aliases.copy()
        other.blobs, other.anchors, other.token = self.blobs.copy(), self.anchors.copy(), self.token.copy()
        return other

    def add(self, acknowledgements: Iterable[dict[str, Any]]) -> None:
        for one in acknowledgements:
            match one:
                case {"token": sequences}:
                    self.token |= sequences
                case {"anchor": line}:
                    self.anchors.append(line)
                case {"alias": name, "key": arn}:
                    self.aliases[name] = arn
                case {"blob": blob, "name": name}:
                    self.blobs[name] = base64.b64decode(blob)
                case {"key": arn}:
                    self.keys.append(arn)


class Client:
    """Asks for one thing after the other, and says what was acknowledged before it asks for the next."""

    def __init__(self, service: Assembled, name: str, acknowledge: Callable[[dict[str, str]], None]) -> None:
        self._service = service
        self._name = name
        self._acknowledge = acknowledge
        self._count = 0
        self._keys: list[str] = []

    def _next(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    async def create_key(self) -> None:
        response = await self._service.ask(CREATE_KEY, CreateKeyRequest(description=self._next()))
        self._keys.append(response.key_metadata.arn)
        self._acknowledge({"key": self._keys[-1]})

    async def create_alias(self) -> None:
        if not self._keys:
            await self.create_key()
        name, key = f"alias/{self._next()}", self._keys[-1]
        await self._service.ask(CREATE_ALIAS, CreateAliasRequest(alias_name=name, target_key_id=key))
        self._acknowledge({"alias": name, "key": key})

    async def encrypt(self) -> None:
        if not self._keys:
            await self.create_key()
        name = self._next()
        response = await self._service.ask(
            ENCRYPT,
            EncryptRequest(
                key_id=self._keys[-1], plaintext=memoryview(name.encode()), encryption_context={"name": name}
            ),
        )
        self._acknowledge({"blob": base64.b64encode(response.ciphertext_blob).decode(), "name": name})

    async def seal_and_unseal(self) -> None:
        await self._service.seal_and_unseal()

    async def maintain(self) -> None:
        await self._service.maintain()

    def steps(self, rng: random.Random) -> Iterator[Callable[[], Awaitable[None]]]:
        """Endless random steps; one that needs a key makes the first."""
        while True:
            yield rng.choices((self.create_key, self.create_alias, self.encrypt, self.maintain), (4, 4, 2, 2))[0]


async def check(service: Assembled, told: Told, rng: random.Random) -> None:
    """Everything acknowledged is there and works, and every key and alias that exists is whole."""
    keys, aliases = await all_keys(service), await all_aliases(service)
    assert set(told.keys) <= keys, f"acknowledged keys are gone: {set(told.keys) - keys}"
    assert told.aliases.items() <= aliases.items(), f"aliases are gone: {told.aliases.items() - aliases.items()}"
    assert set(aliases.values()) <= keys, "an alias names a key that does not exist"
    for name, arn in some_of(sorted(aliases.items()), rng):
        described = await service.ask(DESCRIBE_KEY, DescribeKeyRequest(key_id=name))
        assert described.key_metadata.arn == arn
    for arn in some_of(sorted(keys), rng):
        made = await service.ask(ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"works")))
        opened = await service.ask(DECRYPT, DecryptRequest(ciphertext_blob=made.ciphertext_blob))
        assert bytes(opened.plaintext) == b"works"
    for name, blob in some_of(sorted(told.blobs.items()), rng):
        request = DecryptRequest(ciphertext_blob=blob, encryption_context={"name": name})
        assert bytes((await service.ask(DECRYPT, request)).plaintext) == name.encode()


async def check_trail(service: Assembled, directory: Path, told: Told, *, has_all: bool = True) -> None:
    """It verifies and nothing is open; it has each acknowledgement, and tells of what exists and nothing else.

    Without `has_all` its last lines may be lost, but for what changed something: of that at least the intents are kept.
    """
    keys, aliases = await all_keys(service), await all_aliases(service)
    key = (await service.ask(GET_AUDIT_ANCHOR, GetAuditAnchorRequest())).public_key
    assert key is not None
    rotated = sorted((directory / AUDIT).glob("audit.log.[0-9]*"))
    files = [*rotated, directory / AUDIT / "audit.log"]
    anchors = read_anchors("log", [line.encode() for line in told.anchors], key)
    report = verify_trail([trail_file(path) for path in files], public_key=key, anchors=anchors)
    assert report.open_intents == (), f"open: {report.open_intents}"
    records = [msgspec.json.decode(line) for path in files for line in path.read_bytes().splitlines()]
    outcomes = [record for record in records if record["eventType"] == _OUTCOME and happened(record)]
    named = {_parameter(record, records) for record in outcomes if record["eventName"] == "CreateAlias"}
    assert named == set(aliases), f"the trail differs from the aliases by {named ^ set(aliases)}"
    created = [record for record in outcomes if record["eventName"] == "CreateKey"]
    assert len(created) == len(keys), f"the trail tells of {len(created)} keys, and there are {len(keys)}"
    # What a start settles has no ARN: the intent came before the key's id.
    arns = {record["resources"][0]["ARN"] for record in created if record.get("resources")}
    assert arns <= keys, f"the trail tells of keys that do not exist: {arns - keys}"
    if not has_all:
        return
    assert set(told.keys) <= arns, f"no line for {set(told.keys) - arns}"
    encrypted = {_context(record) for record in records if record["eventName"] == "Encrypt" and happened(record)}
    assert set(told.blobs) <= encrypted, f"no line for {set(told.blobs) - encrypted}"


def happened(record: dict[str, Any]) -> bool:
    """Whether a record says that it was done: without an error, or that it was committed all the same."""
    return "errorCode" not in record or bool((record.get("additionalEventData") or {}).get("committed"))


def _context(record: dict[str, Any]) -> str:
    return str(((record.get("requestParameters") or {}).get("encryptionContext") or {}).get("name"))


def _parameter(record: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """Return the alias that an outcome is about; what a start settles has it in its intent only."""
    if "requestParameters" in record:
        return str(record["requestParameters"]["aliasName"])
    [intent] = [one for one in records if one["eventType"] == _INTENT and one["requestID"] == record["requestID"]]
    return str(intent["requestParameters"]["aliasName"])


def some_of(things: list[Any], rng: random.Random) -> list[Any]:
    """Return all of a few, and some of many."""
    return rng.sample(things, min(OLDER_TRIED, len(things)))


async def all_keys(service: Assembled) -> set[str]:
    found: set[str] = set()
    marker = None
    while True:
        page = await service.ask(LIST_KEYS, ListKeysRequest(limit=1000, marker=marker))
        found |= {key.key_arn for key in page.keys}
        marker = page.next_marker
        if marker is None:
            return found


async def all_aliases(service: Assembled) -> dict[str, str]:
    """Return all aliases, and the ARN of the key that each names."""
    found: dict[str, str] = {}
    marker = None
    while True:
        page = await service.ask(LIST_ALIASES, ListAliasesRequest(limit=100, marker=marker))
        for alias in page.aliases:
            key_prefix = alias.alias_arn.rpartition(":alias/")[0]
            found[alias.alias_name] = f"{key_prefix}:key/{alias.target_key_id}"
        marker = page.next_marker
        if marker is None:
            return found
