"""`kmsd restore` on a host, as root: the set-up of `kmsd init`, with a store that comes out of a backup."""

from __future__ import annotations

from typing import BinaryIO

from kmsd.audit.record import Actor
from kmsd.commands.init import Choices, Setup
from kmsd.commands.offline import Opening
from kmsd.commands.pins import HeldPin
from kmsd.commands.restore import check_no_store, restore
from kmsd.commands.service_process import as_service
from kmsd.commands.sites import host
from kmsd.commands.steps import SetupError
from kmsd.commands.tokens import make_root_key, softhsm_directory
from kmsd.config import Hsm
from kmsd.hsm.softhsm import is_made
from kmsd.processes.privileges import Account
from kmsd.server.deployment import store_path


class RestoredHost(Setup):
    """Sets the host up, and fills it with the backup in `stream`, whose name is for messages.

    With `to_token` the keys are wrapped by the root key of the token that the choices or the settings name, which is
    made if it is missing; else that token has to be the one that the backup was made with.
    """

    def __init__(
        self, choices: Choices, stream: BinaryIO, name: str, shares: bytes | None, actor: Actor, *, to_token: bool
    ) -> None:
        super().__init__(choices)
        self._stream = stream
        self._name = name
        self._shares = shares
        self._actor = actor
        self._to_token = to_token

    def run(self) -> None:
        """Do what is missing, step by step; raises what prevents it."""
        try:
            check_no_store(store_path(self._config))
        except SetupError as error:
            raise SetupError(f"{error}. If it came from a restore that was interrupted, `kmsd init` goes on") from None
        super().run()

    def _token(self, account: Account) -> Hsm:
        directory = softhsm_directory(self._config)
        if self._is_softhsm() and not self._to_token and not is_made(directory):
            raise SetupError(
                f"there is no token in {directory}: put it back, or restore onto a new one with --token and recovery "
                "shares"
            )
        return super()._token(account)

    def _open_store(self, pin: HeldPin, account: Account) -> None:
        config = self._config
        if self._to_token and not self._is_softhsm():
            make_root_key(config, pin, account)
        opening = Opening(
            stream=self._stream,
            name=self._name,
            site=host(config, pin),
            shares=self._shares,
            needs_token=self._to_token,
        )
        as_service(account, lambda: restore(opening, self._actor))
