"""Where the token's PIN rests: a credential that systemd decrypts for the service, or else a file.

A credential is bound to this host (a key of its own, and its TPM if it has one), so that a copy of the disk's files
alone does not open the token. Not bound to the TPM's measurements: an update of the firmware must not lose the PIN.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from kmsd.commands.pins import HeldPin
from kmsd.commands.steps import SetupError, drop_draft, tell, write_new
from kmsd.commands.units import is_booted
from kmsd.config import DEFAULT_PATH
from kmsd.hsm.pin import FilePin
from kmsd.hsm.root import PinUnavailableError
from kmsd.processes.privileges import Account

NAME = "hsm-pin"
CREDENTIAL = Path("/etc/credstore.encrypted/kmsd.hsm-pin")
_CREDENTIAL_SETTING = f"credential:{NAME}"


class PinPlace:
    """Where the PIN of the host with these `settings` is, or will be.

    `wanted` is the setting `hsm.pin` if there are settings already; None leaves the choice to this.
    """

    def __init__(self, settings: Path, wanted: str | None) -> None:
        # The units pass the credential to the daemon whose settings they read, and to no other.
        self._is_units = settings == DEFAULT_PATH
        self._wanted = wanted
        self._file = settings.parent / NAME

    def find(self) -> str | None:
        """Return the setting for what is stored, None if there is nothing, or nothing that this could read."""
        if self._wanted in {None, _CREDENTIAL_SETTING} and self._is_units and CREDENTIAL.exists():
            return _CREDENTIAL_SETTING
        file = self._plain_file()
        return f"file:{file}" if file is not None and file.exists() else None

    def is_missing(self) -> bool:
        """Whether `store` has something to do."""
        stores = self._plain_file() is not None or (self._wanted == _CREDENTIAL_SETTING and self._is_units)
        return stores and self.find() is None

    def store(self, pin: HeldPin, account: Account) -> str:
        """Store the PIN for the daemon's starts and return the setting that finds it there; raises SetupError."""
        file = self._plain_file()
        problem: str | None = "the settings name a file"
        if self._wanted is None or file is None:
            problem = _encrypt(pin) if self._is_units else "it is for the units, which read other settings"
            if problem is None:
                tell(made=True, what=f"credential {CREDENTIAL}")
                return _CREDENTIAL_SETTING
        if file is None:
            raise SetupError(
                f'the settings say pin = "{self._wanted}", but no credential can be made here ({problem}): set pin = '
                f'"file:{self._file}", and run this again'
            )
        _check_own_group(account)
        write_new(file, pin.view, mode=0o640, owner=(0, account.gid))
        tell(made=True, what=f"{file}: the PIN in clear, not as a credential of systemd's ({problem})")
        return f"file:{file}"

    def drop_drafts(self) -> None:
        """Remove what a run that was killed left of a PIN."""
        file = self._plain_file()
        for path in (*([CREDENTIAL] if self._is_units else []), *([file] if file is not None else [])):
            drop_draft(path)

    def _plain_file(self) -> Path | None:
        if self._wanted is None:
            return self._file
        kind, _, place = self._wanted.partition(":")
        return Path(place) if kind == "file" else None


def place_of(setting: str) -> Path:
    """Return the file that holds the PIN which `PinPlace.find` found."""
    kind, _, place = setting.partition(":")
    return Path(place) if kind == "file" else CREDENTIAL


def _check_own_group(account: Account) -> None:
    """Refuse to let the service's group read the PIN when others are in it."""
    members = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == account.gid}
    members.update(name for group in grp.getgrall() if group.gr_gid == account.gid for name in group.gr_mem)
    if others := sorted(members - {account.name}):
        raise SetupError(
            f"the group of {account.name} would be let read the token's PIN, and {', '.join(others)} is in it too: "
            f"give {account.name} a group of its own"
        )


def open_stored_pin(setting: str) -> HeldPin:
    """Return the PIN that `PinPlace.find` found; raises PinUnavailableError."""
    kind, _, place = setting.partition(":")
    return HeldPin.of(FilePin(Path(place)) if kind == "file" else _Encrypted(CREDENTIAL.read_bytes()))


class _Encrypted:
    """A PIN inside a credential."""

    def __init__(self, credential: bytes) -> None:
        self._credential = credential

    def read_into(self, view: memoryview) -> int:
        """Have systemd decrypt it straight into `view`; raises PinUnavailableError."""
        reading, writing = os.pipe()
        with os.fdopen(reading):
            try:
                opened = _run(["systemd-creds", "decrypt", f"--name={NAME}", "-", "-"], self._credential, writing)
            finally:
                os.close(writing)
            if opened.returncode:
                raise PinUnavailableError(f"the credential {NAME} cannot be decrypted: {_complaint(opened)}")
            return os.readv(reading, [view])


def _encrypt(pin: HeldPin) -> str | None:
    """Make the credential, and see that it opens; return what is wrong, None when it is there."""
    if not is_booted():
        return "without systemd nobody would pass it to kmsd"
    if shutil.which("systemd-creds") is None:
        return "systemd-creds is not installed"
    encrypted = _run(
        ["systemd-creds", "encrypt", f"--name={NAME}", "--tpm2-pcrs=", "-", "-"], pin.view, subprocess.PIPE
    )
    if encrypted.returncode:
        return _complaint(encrypted)
    try:
        opened = HeldPin.of(_Encrypted(encrypted.stdout))
    except PinUnavailableError as error:
        return str(error)
    if not opened.equals(pin):
        return "what it encrypted does not open"
    CREDENTIAL.parent.mkdir(mode=0o700, exist_ok=True)
    write_new(CREDENTIAL, encrypted.stdout, mode=0o600, owner=(0, 0))
    return None


def _run(command: list[str], data: bytes | memoryview, output: int) -> subprocess.CompletedProcess[bytes]:
    reading, writing = os.pipe()
    # A pipe takes 64 KiB before anybody reads (pipe(7)); this is a PIN, or a credential of some 200 bytes.
    os.write(writing, data)
    os.close(writing)
    try:
        return subprocess.run(  # noqa: S603 - systemd's own program
            command, stdin=reading, stdout=output, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(reading)


def _complaint(ran: subprocess.CompletedProcess[bytes]) -> str:
    lines = ran.stderr.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {ran.returncode}")
