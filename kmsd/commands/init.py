"""`kmsd init`: sets up a host, as root, so that `kmsd serve` finds everything it needs.

Every step looks first and does only what is missing. So it may be interrupted anywhere and run again, and on a host
that is set up it changes nothing. It never takes the place of keys, a token, a store or settings that are there.
"""

from __future__ import annotations

import fcntl
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from kmsd.commands.accounts import ADMINISTRATORS, USERS, make_accounts
from kmsd.commands.credentials import CREDENTIAL, NAME, PinPlace, open_stored_pin, place_of
from kmsd.commands.directories import make_directories
from kmsd.commands.failures import exit_code_of
from kmsd.commands.pins import HeldPin, vendor_pin
from kmsd.commands.recovery_choice import RecoveryOptions, SharePlan, check_options, choose
from kmsd.commands.service_process import as_service
from kmsd.commands.settings import write_settings
from kmsd.commands.share_files import ShareFiles
from kmsd.commands.shares import HeldKey, hand_out, has_keys, publish
from kmsd.commands.steps import SetupError, UsageError, drop_draft, tell
from kmsd.commands.tokens import make_root_key, make_softhsm, softhsm_directory, softhsm_pin_file
from kmsd.commands.units import start_units
from kmsd.config import DEFAULT_PATH, Config, Hsm, load_config
from kmsd.hsm.pin import FilePin
from kmsd.hsm.softhsm import is_made
from kmsd.identity.peer import check_identity_map
from kmsd.processes.privileges import Account, find_account
from kmsd.processes.sandbox import harden_process
from kmsd.server.daemon import run_daemon
from kmsd.server.deployment import founding, store_path

_EXIT_USAGE = 2


@dataclass(frozen=True)
class Choices:
    """What an administrator decided on the command line; None where that is left to a question."""

    settings: Path
    interactive: bool
    recovery: RecoveryOptions
    module: str | None
    token_label: str | None
    pin_file: str | None
    environment: tuple[tuple[str, str], ...]
    readable_paths: tuple[str, ...]
    writable_paths: tuple[str, ...]
    connect: Literal["nothing", "local", "network"]

    @property
    def names_module_needs(self) -> bool:
        """Whether the library is to be given more than every library is."""
        return bool(self.environment or self.readable_paths or self.writable_paths) or self.connect != "nothing"


def run_init(choices: Choices) -> int:
    """Set up the host; return the exit code."""
    try:
        check_options(choices.recovery, interactive=choices.interactive)
        check_token(choices)
        return exit_code_of(lambda: Setup(choices).run())
    except UsageError as error:
        sys.stderr.write(f"kmsd: error: {error}\n")
        return _EXIT_USAGE


def check_token(choices: Choices) -> None:
    """Raise UsageError for options of the token that contradict each other."""
    if choices.module is None:
        if choices.token_label or choices.pin_file or choices.names_module_needs:
            raise UsageError("--token-label, --pin-file and those that begin with --module- belong to --module")
        return
    if not Path(choices.module).is_absolute():
        raise UsageError(f"--module {choices.module}: name the module by its whole path")
    if choices.token_label is None:
        raise UsageError("--module needs --token-label: which of the module's tokens is it?")
    if choices.pin_file is None and not choices.interactive:
        raise UsageError("--module needs --pin-file here: a file with the token's PIN, or - for standard input")


class Setup:
    """The steps, each of which looks first."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._path = choices.settings.absolute()
        # Also a link that leads nowhere: it is not ours to fill.
        self._has_settings = os.path.lexists(self._path)
        self._config = load_config(self._path) if self._has_settings else Config()
        self._place = PinPlace(self._path, self._config.hsm.pin if self._has_settings else None)
        self._plan: SharePlan | None = None
        directory = choices.recovery.directory
        self._share_files = ShareFiles(directory, os.uname().nodename) if directory is not None else None

    def run(self) -> None:
        """Do what is missing, step by step; raises what prevents it, SetupError among it."""
        if os.getuid() != 0:
            raise SetupError("kmsd init sets up the whole host: run it as root")
        # The PIN is in this process's memory, and may be typed into it: no core file, for its children neither.
        harden_process()
        # What is made on the way to a directory is for everybody to pass; everything else is given a mode of its own.
        os.umask(0o022)
        check_identity_map()
        if self._has_settings:
            self._check_settings()
        if not self._is_founded():
            self._plan = choose(self._choices.recovery, interactive=self._choices.interactive)
        make_accounts(self._config.user, self._config.paths.state)
        account = find_account(self._config.user)
        make_directories(self._config, self._path, account)
        lock = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._found(account)
        except BlockingIOError:
            raise SetupError("another `kmsd init` is running: wait for it, then look with another run") from None
        finally:
            os.close(lock)
        obstacle = start_units(self._path)
        self._say_what_is_next(obstacle)

    def _check_settings(self) -> None:
        named, chosen = self._config.hsm, self._choices
        if not named.module:
            raise SetupError(
                f"{self._path} is there and names no token, and kmsd init changes no settings: add hsm.module and "
                "hsm.token_label, or move the file away, and run this again"
            )
        if chosen.module is not None and (named.module, named.token_label) != (chosen.module, chosen.token_label):
            raise SetupError(
                f"{self._path} names the token {named.token_label!r} of {named.module}, and kmsd init changes no "
                "settings: leave --module out, or move the file away"
            )

    def _found(self, account: Account) -> None:
        """Make what holds the keys, in the order in which each needs the one before."""
        self._place.drop_drafts()
        drop_draft(self._path)
        is_founded = self._is_founded()
        self._config = msgspec.structs.replace(self._config, hsm=self._token(account))
        pin = None
        if not is_founded or not self._has_settings or self._place.is_missing():
            # Also if only the PIN's place is missing: what is stored has opened the token and the store.
            pin = self._pin()
            self._open_store(pin, account)
        tell(made=not is_founded, what=f"store {store_path(self._config)} and audit trail {self._config.paths.audit}")
        if self._share_files is not None:
            publish(self._share_files, self._config, account)
        self._keep_pin(pin, account)

    def _open_store(self, pin: HeldPin, account: Account) -> None:
        """Have the daemon's first start, which makes the root key and the store as far as they are missing."""
        # A store was made under the root key that was there then; another one could not open it.
        if not self._is_softhsm() and not store_path(self._config).exists():
            make_root_key(self._config, pin, account)
        # Last, so that nobody is shown shares in vain.
        recovery_key = self._recovery_key(account)
        config = self._config
        try:
            as_service(account, lambda: _run(config, pin, recovery_key))
        except SetupError as error:
            if self._has_settings or self._is_softhsm():
                raise
            raise SetupError(
                f"{error}. From here on the module may reach only what it is given: if it needs files, devices, pcscd "
                "or a network, name them by --module-reads, --module-writes and --module-connects"
            ) from None
        finally:
            if recovery_key is not None:
                recovery_key.close()

    def _recovery_key(self, account: Account) -> HeldKey | None:
        """Return the key of a store that is yet to be made, when its shares are out of our hands."""
        if self._plan is None:
            return None
        if has_keys(self._config, account):
            # A run that was killed made it, with shares that were handed out before.
            tell(made=False, what="recovery, as it was chosen when the store was made")
            return None
        return hand_out(self._plan, self._share_files)

    def _token(self, account: Account) -> Hsm:
        """Return the settings of the token, which is made if it is one of ours and not there."""
        choices = self._choices
        if self._is_softhsm():
            self._check_not_lost()
            made = make_softhsm(self._config, account)
            return self._config.hsm if self._has_settings else made
        if self._has_settings:
            return self._config.hsm
        return Hsm(
            module=choices.module or "",
            token_label=choices.token_label or "",
            environment=dict(choices.environment),
            readable_paths=choices.readable_paths,
            writable_paths=choices.writable_paths,
            connect=choices.connect,
        )

    def _check_not_lost(self) -> None:
        """Refuse to make a token in the place of one that was there."""
        directory = softhsm_directory(self._config)
        if is_made(directory):
            return
        if (stored := self._place.find()) is not None:
            raise SetupError(
                f"{place_of(stored)} holds the PIN of a token that is not there: put the token back into {directory}, "
                "or move the PIN away to begin anew"
            )
        if (store := store_path(self._config)).exists():
            raise SetupError(
                f"{store} was made with a token, and {directory} has none: put it back from a backup, or name the "
                "token that it was with --module; a new one could not open the keys"
            )

    def _is_softhsm(self) -> bool:
        """Whether the token is the one that this makes by itself."""
        if self._has_settings:
            place = f"{softhsm_directory(self._config)}/"
            return any(value.startswith(place) for value in self._config.hsm.environment.values())
        return self._choices.module is None

    def _is_founded(self) -> bool:
        """Whether store and trail are in use: the first thing a store does is to have the trail tell of it."""
        trail = Path(self._config.paths.audit)
        return store_path(self._config).exists() and trail.exists() and trail.stat().st_size > 0

    def _pin(self) -> HeldPin:
        """Return the PIN, from wherever it is by now; one of another token is never tried."""
        stored = self._place.find()
        file = softhsm_pin_file(self._config)
        if self._is_softhsm() and file.exists():
            pin = HeldPin.of(FilePin(file))
        elif stored is not None and (self._is_softhsm() or (self._is_ours() and self._choices.pin_file is None)):
            return open_stored_pin(stored)
        elif self._is_softhsm():
            raise SetupError(
                f"the PIN of the token {softhsm_directory(self._config)} is lost: put it back from a backup, into "
                f"{file}"
            )
        else:
            hsm = self._config.hsm
            pin = vendor_pin(self._choices.pin_file, hsm.token_label, interactive=self._choices.interactive)
        if stored is not None and not open_stored_pin(stored).equals(pin):
            raise _other_pin(stored)
        return pin

    def _is_ours(self) -> bool:
        """Whether a PIN that is stored is certainly that of a vendor's token, and not left from another."""
        return self._has_settings or self._is_founded()

    def _keep_pin(self, pin: HeldPin | None, account: Account) -> None:
        """Store the PIN for the daemon's starts, write the settings that say where, and drop what is not needed."""
        if pin is not None and self._place.is_missing():
            stored = self._place.store(pin, account)
        else:
            stored = self._config.hsm.pin if self._has_settings else self._place.find() or ""
            tell(made=False, what=f"PIN, {stored or 'which an administrator gives'}")
        if self._has_settings:
            tell(made=False, what=f"settings {self._path}")
        else:
            self._config = msgspec.structs.replace(
                self._config, hsm=msgspec.structs.replace(self._config.hsm, pin=stored)
            )
            write_settings(self._path, self._config.hsm)
        if self._is_softhsm():
            self._drop_pin_file()

    def _drop_pin_file(self) -> None:
        """Remove the PIN beside the token, once it is certain that the stored one is the same.

        Whoever gets a copy of the state, a backup for example, shall not have token and PIN.
        """
        file = softhsm_pin_file(self._config)
        stored = self._place.find()
        if not file.exists() or stored is None or place_of(stored).samefile(file):
            return
        if not open_stored_pin(stored).equals(HeldPin.of(FilePin(file))):
            raise _other_pin(stored)
        # What opens the stored one, such as systemd's key of this host, may be as new, and is not ours to sync alone.
        os.sync()
        file.unlink()

    def _say_what_is_next(self, obstacle: str | None) -> None:
        print()
        if obstacle is not None:
            options = "" if self._path == DEFAULT_PATH else f" --config {self._path}"
            print(f"Not started: {obstacle}. Start it by hand, as root: kmsd serve{options}")
            if self._config.hsm.pin.startswith("credential:"):
                print(
                    "Started so it gets no credential from systemd: open it with `kms unseal`, which asks for the PIN."
                )
        print(f"Next: who may use keys:        usermod -aG {USERS} NAME")
        print(f"      who administers kmsd:    usermod -aG {ADMINISTRATORS} NAME")
        print("      see that all is well:    kms doctor")
        if self._is_softhsm():
            print(f"      back up the token:       {softhsm_directory(self._config)}")
            if (stored := self._place.find()) is not None:
                place = place_of(stored)
                how = f"systemd-creds decrypt --name={NAME} {CREDENTIAL} FILE" if place == CREDENTIAL else place
                print(f"      back up its PIN, apart:  {how}")
        print("Without token and PIN, or enough recovery shares, nothing that was encrypted can be read again.")


def _other_pin(stored: str) -> SetupError:
    return SetupError(
        f"{place_of(stored)} holds another PIN than that of the token, and was not tried: move it away (another "
        "token may have no other copy), and run this again"
    )


def _run(config: Config, pin: HeldPin, recovery_key: HeldKey | None) -> bool:
    run_daemon(founding(config, pin, recovery_key.mapped if recovery_key is not None else None))
    return True
