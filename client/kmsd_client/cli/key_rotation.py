"""Give keys new material, and tell what material they have: `kms key rotate` and `kms key rotations`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from kmsd.api.errors import AccessDeniedError, KmsError
from kmsd.api.rotation import (
    DISABLE_KEY_ROTATION,
    ENABLE_KEY_ROTATION,
    GET_KEY_ROTATION_STATUS,
    LIST_KEY_ROTATIONS,
    ROTATE_KEY_ON_DEMAND,
    DisableKeyRotationRequest,
    EnableKeyRotationRequest,
    GetKeyRotationStatusRequest,
    GetKeyRotationStatusResponse,
    IncludeKeyMaterial,
    ListKeyRotationsRequest,
    RotateKeyOnDemandRequest,
    RotationsListEntry,
)
from kmsd_client import Client
from kmsd_client.cli.keys import key_id_of
from kmsd_client.cli.moments import counted, day, second
from kmsd_client.cli.terminal import note, print_json, print_table

_PAGE = 1000  # as many as one request may ask for
# So much of an id of 64 digits tells the few versions of one key apart.
_ID_DIGITS = 12


def run_rotate(options: argparse.Namespace) -> None:
    """Rotate a key or set when it is rotated, and tell what that means for what was encrypted before."""
    with Client(options.socket) as client:
        key_id = key_id_of(client, options.key)
        if options.now:
            client.call(ROTATE_KEY_ON_DEMAND, RotateKeyOnDemandRequest(key_id=key_id))
        elif options.off:
            client.call(DISABLE_KEY_ROTATION, DisableKeyRotationRequest(key_id=key_id))
        else:
            client.call(
                ENABLE_KEY_ROTATION, EnableKeyRotationRequest(key_id=key_id, rotation_period_in_days=options.every)
            )
        told = ["no file needs re-encryption"]
        with _told_if_possible():
            told.insert(0, material_words(len(_materials(client, key_id))))
        with _told_if_possible():
            told.append(_schedule(client.call(GET_KEY_ROTATION_STATUS, GetKeyRotationStatusRequest(key_id=key_id))))
    print("; ".join(told))


@contextlib.contextmanager
def _told_if_possible() -> Iterator[None]:
    """Take it that something was done of which not all can be told: whoever saw it fail would do it again."""
    try:
        yield
    except AccessDeniedError:
        pass  # who may rotate may not be allowed to look
    except KmsError as error:
        note(f"it was done, but not all of what comes of it can be told: {error.message or error.code}")


def run_rotations(options: argparse.Namespace) -> None:
    """List the material of a key, oldest first."""
    with Client(options.socket) as client:
        materials = _materials(client, key_id_of(client, options.key))
    if options.json:
        print_json(materials)
    else:
        print_table(
            ("MATERIAL", "ID", "STATE", "ROTATED", "BY"),
            [
                (
                    str(number),
                    one.key_material_id[:_ID_DIGITS],
                    one.key_material_state,
                    second(one.rotation_date) if one.rotation_date else "-",
                    one.rotation_type or "-",
                )
                for number, one in enumerate(materials, 1)
            ],
        )


def material_words(count: int) -> str:
    """Return which of so many versions of the material does what."""
    current = f"material {count} is current"
    if count <= 1:
        return f"{current}, and decrypts for ever"
    older = "1 still decrypts" if count == 2 else f"1-{count - 1} still decrypt"  # noqa: PLR2004 - one and more than one
    return f"{current}; {older}"


def _materials(client: Client, key_id: str) -> list[RotationsListEntry]:
    """Return a key's material page by page; the position of each is its number less 1, as none is ever taken away."""
    materials: list[RotationsListEntry] = []
    marker = None
    while True:
        page = client.call(
            LIST_KEY_ROTATIONS,
            ListKeyRotationsRequest(
                key_id=key_id, include_key_material=IncludeKeyMaterial.ALL_KEY_MATERIAL, limit=_PAGE, marker=marker
            ),
        )
        materials += page.rotations
        marker = page.next_marker
        if marker is None:
            return materials


def _schedule(status: GetKeyRotationStatusResponse) -> str:
    if status.next_rotation_date is None or status.rotation_period_in_days is None:
        return "no next rotation is planned"
    return f"next rotation {day(status.next_rotation_date)}, every {counted(status.rotation_period_in_days, 'day')}"
