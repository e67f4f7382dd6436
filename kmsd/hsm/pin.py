"""Where the token's PIN comes from."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kmsd.hsm.root import PinSource, PinUnavailableError
from kmsd.memory.page import Page

__all__ = ["FilePin", "PagePin", "PinSource"]

_NEWLINES = b"\r\n"


class PagePin:
    """A PIN in the first `length` bytes of a page of secret memory, which has to stay open as long as this is used."""

    def __init__(self, page: Page, length: int) -> None:
        self._page = page
        self._length = length

    def read_into(self, view: memoryview) -> int:
        """Copy the PIN; no object of the heap holds it meanwhile."""
        with self._page.view[: self._length] as pin, view[: self._length] as room:
            room[:] = pin
        return self._length


class CredentialPin:
    """A PIN that systemd passes as the credential `name`, in `directory`: the process's $CREDENTIALS_DIRECTORY or None.

    A credential that is not there is no fault of the daemon's start: it is missed when the PIN is needed.
    """

    def __init__(self, name: str, directory: Path | None) -> None:
        self._name = name
        self._path = None if directory is None else directory / name

    def read_into(self, view: memoryview) -> int:
        """Read the credential straight into `view`; raises PinUnavailableError when it was not passed."""
        # Whatever else is wrong with it, FilePin tells.
        if self._path is None or not os.path.lexists(self._path):
            raise PinUnavailableError(
                f"the credential {self._name!r} was not passed to kmsd: see to it that the unit's "
                "LoadCredentialEncrypted= finds it and restart kmsd, or unseal with `kms unseal`"
            )
        return FilePin(self._path).read_into(view)


class FilePin:
    """A PIN in a file, such as a systemd credential; newlines at its end do not count.

    Read anew for each login, so that a corrected file works at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read_into(self, view: memoryview) -> int:
        """Read the file straight into `view`; raises PinUnavailableError when it is not a private regular file."""
        try:
            # Not blocking: a FIFO in its place would otherwise stop the daemon.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._check(os.fstat(descriptor))
                length = os.readv(descriptor, [view])
            finally:
                os.close(descriptor)
        except OSError as error:
            raise PinUnavailableError(
                f"the PIN file {self._path} cannot be read ({error.strerror}): make it, readable for kmsd only"
            ) from None
        if length == len(view):
            raise PinUnavailableError(f"the PIN file {self._path} is too long: it has to hold the PIN alone")
        while length and view[length - 1] in _NEWLINES:
            length -= 1
        if not length:
            raise PinUnavailableError(f"the PIN file {self._path} is empty: write the token's PIN into it")
        return length

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise PinUnavailableError(f"the PIN file {self._path} is not a regular file")
        # The group's bits may be set: on a systemd credential they are the mask of the ACL that lets the service in.
        if status.st_mode & stat.S_IRWXO:
            raise PinUnavailableError(f"the PIN file {self._path} is open to everyone: chmod 600 it")
