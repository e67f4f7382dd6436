"""A token job: one process, one request, one reply, and its heap is gone.

Vendors' modules crash, hang and lose their handles after a fork, and python-pkcs11 takes PINs and returns keys in
objects that cannot be wiped. So the daemon never loads either: the zygote forks a process for each job.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Collection, Sequence

import msgspec

from kmsd.hsm.conversation import (
    MAX_DATAGRAM_BYTES,
    PIN_LENGTH_BYTES,
    AnchorKept,
    Done,
    Failed,
    KeepAnchor,
    Look,
    Looked,
    MakeDomainKey,
    MakeRootKey,
    MakeToken,
    Reply,
    Request,
    RootKeyReady,
    TokenConfig,
    Unwrap,
    Unwrapped,
    WrapDomainKey,
    Wrapped,
)
from kmsd.hsm.root import DOMAIN_KEY_BYTES, PinIncorrectError, RootError, TokenFailedError
from kmsd.memory.page import Page

# The name under which the daemon gives `run_job` to the zygote.
JOB_ENTRY = "hsm-job"

# The security officer's PIN of a SoftHSM token only allows to reset the user PIN and to erase the token, which whoever
# has the files can do anyway; nobody keeps it.
_OFFICER_PIN_BYTES = 16


def run_job(descriptors: list[int], *, module: str | None = None, variables: Collection[str] | None = None) -> None:
    """Serve one request. `descriptors` are the channel and the pages that the request needs (see `conversation`).

    `module` is the only PKCS#11 library that is loaded, and `variables` are the only ones that may be set for it,
    decided when the zygote was started: a daemon that was taken over since then must not have code of its choice run
    here. None: what the request names.
    """
    with socket.socket(fileno=descriptors[0]) as channel:
        # Not closed here: that would wipe them for the daemon too, which has yet to read the keys. It wipes them.
        pages = [Page.from_descriptor(descriptor).view for descriptor in descriptors[1:]]
        request = msgspec.json.decode(channel.recv(MAX_DATAGRAM_BYTES), type=Request)
        try:
            _check(request.config, module, variables)
            os.environ.update(request.config.environment)
            reply = _perform(request, pages)
        except RootError as error:
            reply = Failed.of(error)
        channel.send(msgspec.json.encode(reply))


def _check(config: TokenConfig, module: str | None, variables: Collection[str] | None) -> None:
    if module is not None and config.module != module:
        raise TokenFailedError(f"the module {config.module} is not the one that kmsd was started with: restart kmsd")
    if variables is not None and (others := {name for name, _ in config.environment} - set(variables)):
        raise TokenFailedError(f"kmsd was started without the module's variables {sorted(others)}: restart kmsd")


def _perform(request: Request, pages: Sequence[memoryview]) -> Reply:
    # Imported here and nowhere else: these load python-pkcs11, which the daemon must not.
    from kmsd.hsm import anchor, cryptoki, initialization  # noqa: PLC0415 - see above

    match request:
        case WrapDomainKey():
            return _wrap(request, pages)
        case Look(config):
            return Looked(cryptoki.describe(config))
        case MakeToken(config):
            officer_pin = secrets.token_hex(_OFFICER_PIN_BYTES)
            initialization.make_token(config, _pin(pages[0]), officer_pin, os.urandom)
            return Done()
        case MakeRootKey(config):
            return RootKeyReady(initialization.make_root_key(config, _pin(pages[0]), os.urandom))
        case MakeDomainKey(config, attended, domain_key_id, generation):
            key = pages[1][:DOMAIN_KEY_BYTES]
            key[:] = os.urandom(DOMAIN_KEY_BYTES)
            info = cryptoki.describe(config)
            with cryptoki.logged_in(config, _pin(pages[0]), attended=attended) as session:
                root_key = cryptoki.RootKey(config, session, os.urandom)
                return Wrapped(root_key.wrap(key, domain_key_id, generation), info)
        case Unwrap(config, attended, records, store_id):
            info = cryptoki.describe(config)
            with cryptoki.logged_in(config, _pin(pages[0]), attended=attended) as session:
                root_key = cryptoki.RootKey(config, session, os.urandom)
                for record, page in zip(records, pages[1:], strict=True):
                    root_key.unwrap(record, page[:DOMAIN_KEY_BYTES])
                return Unwrapped(info, None if store_id is None else anchor.read(config, session, store_id))
        case KeepAnchor(config, attended, store_id, sequence):
            return AnchorKept(anchor.keep(config, _pin(pages[0]), store_id, sequence, attended=attended))


def _wrap(request: WrapDomainKey, pages: Sequence[memoryview]) -> Wrapped:
    from kmsd.hsm import cryptoki  # noqa: PLC0415 - as in `_perform`

    config = request.config
    info = cryptoki.describe(config)
    with cryptoki.logged_in(config, _pin(pages[0]), attended=request.attended) as session:
        root_key = cryptoki.RootKey(config, session, os.urandom)
        return Wrapped(root_key.wrap(pages[1][:DOMAIN_KEY_BYTES], request.domain_key_id, request.generation), info)


def _pin(page: memoryview) -> str:
    length = int.from_bytes(page[:PIN_LENGTH_BYTES], "big")
    try:
        return str(page[PIN_LENGTH_BYTES : PIN_LENGTH_BYTES + length], "utf-8")
    except UnicodeDecodeError:
        raise PinIncorrectError("the PIN is not UTF-8 text: correct it") from None
