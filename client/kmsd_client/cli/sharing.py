"""Let somebody else use a key, and take it back: `kms key share` and `kms key unshare`, which are grants underneath."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex

from kmsd.api.errors import ValidationError
from kmsd.api.grants import (
    CREATE_GRANT,
    REVOKE_GRANT,
    CreateGrantRequest,
    GrantConstraints,
    GrantOperation,
    RevokeGrantRequest,
)
from kmsd_client import Client
from kmsd_client.cli.grants import all_grants
from kmsd_client.cli.keys import key_id_of
from kmsd_client.cli.terminal import CommandError, context_of, printable

ENCRYPTING: tuple[GrantOperation, ...] = (
    GrantOperation.ENCRYPT,
    GrantOperation.GENERATE_DATA_KEY,
    GrantOperation.GENERATE_DATA_KEY_WITHOUT_PLAINTEXT,
    GrantOperation.RE_ENCRYPT_TO,
)
DECRYPTING: tuple[GrantOperation, ...] = (GrantOperation.DECRYPT, GrantOperation.RE_ENCRYPT_FROM)

# What the name of a grant begins with that was made by sharing.
_MARK = "share:"
_FOREIGN = re.compile(r"[^a-zA-Z0-9:/_-]")
_MAX_NAME = 256


def run_share(options: argparse.Namespace) -> None:
    """Share a key; doing so again in the same way changes nothing."""
    if options.encrypt_only:
        words, operations = "encrypt", ENCRYPTING
    elif options.decrypt_only:
        words, operations = "decrypt", DECRYPTING
    else:
        words, operations = "encrypt and decrypt", ENCRYPTING + DECRYPTING
    context = context_of(options.context)
    with Client(options.socket) as client:
        client.call(
            CREATE_GRANT,
            CreateGrantRequest(
                key_id=key_id_of(client, options.key),
                grantee_principal=options.principal,
                operations=[*operations, GrantOperation.DESCRIBE_KEY],
                constraints=GrantConstraints(encryption_context_subset=context) if context else None,
                name=_name(options.principal),
            ),
        )
    where = f" where the encryption context has {', '.join(options.context)}" if context else ""
    print(printable(f"{options.principal} may now {words} with {options.key}{where}"))
    print(
        printable(f"to take it back: {shlex.join(['kms', 'key', 'unshare', options.key, '--with', options.principal])}")
    )


def run_unshare(options: argparse.Namespace) -> None:
    """Revoke all grants by which a key is shared with somebody; other grants stay."""
    with Client(options.socket) as client:
        key = key_id_of(client, options.key)
        shares = _shares(client, key, options.principal)
        for grant_id in shares:
            client.call(REVOKE_GRANT, RevokeGrantRequest(key_id=key, grant_id=grant_id))
    if not shares:
        quoted = shlex.quote(options.key)
        raise CommandError(
            f"{options.key} is not shared with {options.principal}",
            f"kms grant list {quoted} and kms policy show {quoted} tell who may use it",
        )
    grants = "1 grant was" if len(shares) == 1 else f"{len(shares)} grants were"
    print(printable(f"{options.key} is no longer shared with {options.principal}: {grants} revoked"))


def _shares(client: Client, key: str, principal: str) -> set[str]:
    """Return the ids of the grants by which a key is shared with somebody.

    Those that say so in these words, as the name in them may lead to nobody or to somebody else by now, and those that
    mean the same by other words.
    """
    alike = [one for one in all_grants(client, key, to=None) if one.grantee_principal == principal]
    with contextlib.suppress(ValidationError):  # there is no such principal any more
        alike += all_grants(client, key, to=principal)
    return {one.grant_id for one in alike if one.name.startswith(_MARK)}


def _name(principal: str) -> str:
    """Return the name of a grant; whom it is to, the grant itself tells exactly."""
    return _FOREIGN.sub("_", f"{_MARK}{principal}")[:_MAX_NAME]
