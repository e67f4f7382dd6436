"""Where a daemon keeps what it has, for commands that work on that while no daemon runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from kmsd.commands.credentials import PinPlace, open_stored_pin
from kmsd.commands.pins import HeldPin, vendor_pin
from kmsd.commands.steps import SetupError
from kmsd.config import Config
from kmsd.hsm import softhsm
from kmsd.hsm.conversation import TokenConfig
from kmsd.hsm.pin import FilePin, PinSource
from kmsd.processes.zygote import Zygote
from kmsd.server.deployment import DEVELOPMENT_LABEL, development_store_path, store_path, token_config


@dataclass(frozen=True, kw_only=True)
class Site:
    """A host, or the directory of a `kmsd dev`.

    `find_token` may make the token where that was asked for, and raises what a failed start would, or SetupError.
    Without a `pin` nobody logs in to it.
    """

    store: Path
    audit: Path
    find_token: Callable[[Zygote], Awaitable[TokenConfig]]
    pin: PinSource | None
    deadline_seconds: float


def development(directory: Path, *, makes_token: bool = False) -> Site:
    """Return the site of `kmsd dev` in a directory; with `makes_token` a token that is missing is made."""
    token = directory / "token"

    async def find_token(zygote: Zygote) -> TokenConfig:
        if makes_token:
            return await softhsm.make_token(zygote, token, label=DEVELOPMENT_LABEL)
        if not softhsm.is_made(token):
            raise SetupError(
                f"there is no token in {token}: put it back, or restore onto a new one with --token and recovery shares"
            )
        return softhsm.token_config(token, label=DEVELOPMENT_LABEL)

    return Site(
        store=development_store_path(directory),
        audit=directory / "audit.log",
        find_token=find_token,
        pin=FilePin(token / softhsm.PIN_NAME),
        deadline_seconds=Config().hsm.deadline_seconds,
    )


def host(config: Config, pin: PinSource | None) -> Site:
    """Return the site of the host with these settings."""

    async def find_token(zygote: Zygote) -> TokenConfig:  # noqa: ARG001 - `development` makes it by the zygote
        if not config.hsm.module:
            raise SetupError("hsm.module names no PKCS#11 library: set it, or bring recovery shares")
        return token_config(config)

    return Site(
        store=store_path(config),
        audit=Path(config.paths.audit),
        find_token=find_token,
        pin=pin,
        deadline_seconds=config.hsm.deadline_seconds,
    )


def pin_of_host(settings: Path, config: Config, *, interactive: bool) -> HeldPin:
    """Return the PIN of a host's token, from where its daemon has it or typed; as root, before becoming anybody else.

    Raises PinUnavailableError and SetupError.
    """
    stored = PinPlace(settings.absolute(), config.hsm.pin).find()
    if stored is not None:
        return open_stored_pin(stored)
    return vendor_pin(None, config.hsm.token_label, interactive=interactive)
