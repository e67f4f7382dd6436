"""The steps of a set-up: each looks first, does what is missing, and says which of the two it was."""

from __future__ import annotations

import os
from pathlib import Path


class UsageError(ValueError):
    """The command line lacks something; the message says what."""


class SetupError(RuntimeError):
    """A step cannot be done; the message says what to do. What was done so far stays, and is found by the next run."""


def tell(*, made: bool, what: str) -> None:
    """Say what a step made, or found."""
    print(f"{'made' if made else 'found'}  {what}")


def write_new(path: Path, data: bytes | memoryview, *, mode: int, owner: tuple[int, int]) -> None:
    """Write a file that appears whole, with its mode and owner, and takes no other's place; raises SetupError.

    Only one run of the set-up at a time may do this.
    """
    drop_draft(path)
    draft = _draft(path)
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_whole(descriptor, memoryview(data))
            os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            path.hardlink_to(draft)
            sync_directory(path.parent)
        finally:
            os.close(descriptor)
            draft.unlink()
    except FileExistsError:
        raise SetupError(f"{path} was made by somebody else meanwhile: run `kmsd init` again") from None
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}; run `kmsd init` again once it can") from None


def drop_draft(path: Path) -> None:
    """Remove what a run that was killed while it wrote `path` left beside it."""
    _draft(path).unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _write_whole(descriptor: int, data: memoryview) -> None:
    # A disk that fills up takes a part and reports it as a success.
    while data:
        data = data[os.write(descriptor, data) :]


def sync_directory(directory: Path) -> None:
    """See to it that the names in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
