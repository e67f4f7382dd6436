"""The token of `kmsd init`: a SoftHSM token that it makes, or one that somebody has set up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from kmsd.commands.pins import HeldPin
from kmsd.commands.service_process import as_service
from kmsd.commands.steps import tell
from kmsd.config import Config, Hsm
from kmsd.hsm import softhsm
from kmsd.hsm.conversation import MakeRootKey, RootKeyReady
from kmsd.hsm.pkcs11 import JOB_ENTRY, TokenJobs, pin_page, run_job
from kmsd.processes.privileges import Account
from kmsd.processes.zygote import Zygote
from kmsd.server.deployment import token_config

_SOFTHSM_LABEL = "kmsd"


def softhsm_directory(config: Config) -> Path:
    """Return where the SoftHSM token of a host is."""
    return Path(config.paths.state, "token")


def softhsm_pin_file(config: Config) -> Path:
    """Return the file in which a new SoftHSM token's PIN is, until it has a better place."""
    return softhsm_directory(config) / softhsm.PIN_NAME


def make_softhsm(config: Config, account: Account) -> Hsm:
    """Make a SoftHSM token with its root key below the daemon's state, unless it is there; return its settings."""
    directory = softhsm_directory(config)
    token = softhsm.token_config(directory, label=_SOFTHSM_LABEL)
    is_new = not softhsm.is_made(directory)
    if is_new:

        async def make(zygote: Zygote) -> bool:
            await softhsm.make_token(zygote, directory, label=_SOFTHSM_LABEL)
            return True

        as_service(account, lambda: _with_zygote(make))
    tell(made=is_new, what=f"SoftHSM token {directory} with its root key")
    return Hsm(
        module=token.module,
        token_label=token.token_label,
        root_key_label=token.root_key_label,
        environment=dict(token.environment),
        readable_paths=(str(directory),),
        writable_paths=(str(directory),),
    )


def make_root_key(config: Config, pin: HeldPin, account: Account) -> None:
    """Make the root key in the token that the settings name, unless it is there."""
    hsm = config.hsm
    request = MakeRootKey(token_config(config))

    async def make(zygote: Zygote) -> bool:
        with pin_page(pin) as page:
            jobs = TokenJobs(zygote, deadline_seconds=hsm.deadline_seconds)
            return (await jobs.run(request, [page], RootKeyReady)).made

    is_new = as_service(account, lambda: _with_zygote(make))
    tell(made=is_new, what=f"root key {hsm.root_key_label!r} in the token {hsm.token_label!r}")


def _with_zygote(work: Callable[[Zygote], Awaitable[bool]]) -> bool:
    zygote = Zygote.start({JOB_ENTRY: run_job})

    async def run() -> bool:
        try:
            return await work(zygote)
        finally:
            await zygote.close()

    return asyncio.run(run())
