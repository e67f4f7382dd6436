"""Where the token's PIN rests: a credential that systemd decrypts for the service, or else a file.

A credential is bound to this host (a key of its own, and its TPM if it has one), so that a copy of the disk's files
alone does not open the token. Not bound to the TPM's measurements: an update of the firmware must not lose the PIN.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from kmsd.commands.pins import HeldPin
from kmsd.commands.steps import tell, write_new
from kmsd.hsm.pin import FilePin
from kmsd.hsm.root import PinUnavailableError
from kmsd.processes.privileges import Account

NAME = "hsm-pin"
CREDENTIAL = Path("/etc/credstore.encrypted/kmsd.hsm-pin")


def find_pin_setting(settings: Path) -> str | None:
    """Return the setting `hsm.pin` for what an earlier run stored, None if there is nothing."""
    if CREDENTIAL.exists():
        return f"credential:{NAME}"
    file = _plain_file(settings)
    return f"file:{file}" if file.exists() else None


def store_pin(pin: HeldPin, settings: Path, account: Account) -> str:
    """Store the PIN for the daemon's starts and return the setting `hsm.pin` that finds it there."""
    problem = _encrypt(pin)
    if problem is None:
        tell(made=True, what=f"credential {CREDENTIAL}")
        return f"credential:{NAME}"
    file = _plain_file(settings)
    write_new(file, pin.view, mode=0o640, owner=(0, account.gid))
    tell(made=True, what=f"{file}: the PIN in clear, as systemd-creds does not work here ({problem})")
    return f"file:{file}"


def open_stored_pin(setting: str) -> HeldPin:
    """Return the PIN that `find_pin_setting` found; raises PinUnavailableError."""
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
            opened = _run(["systemd-creds", "decrypt", f"--name={NAME}", "-", "-"], self._credential, writing)
            os.close(writing)
            if opened.returncode:
                raise PinUnavailableError(f"the credential {NAME} cannot be decrypted: {_complaint(opened)}")
            return os.readv(reading, [view])


def _plain_file(settings: Path) -> Path:
    return settings.parent / NAME


def _encrypt(pin: HeldPin) -> str | None:
    """Make the credential, and see that it opens; return what is wrong, None when it is there."""
    if shutil.which("systemd-creds") is None:
        return "it is not installed"
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
