"""The steps of a set-up: each looks first, does what is missing, and says which of the two it was."""

from __future__ import annotations

import os
from pathlib import Path


class SetupError(RuntimeError):
    """A step cannot be done; the message says what to do. What was done so far stays, and is found by the next run."""


def tell(*, made: bool, what: str) -> None:
    """Say what a step made, or found."""
    print(f"{'made' if made else 'found'}  {what}")


def write_new(path: Path, data: bytes | memoryview, *, mode: int, owner: tuple[int, int]) -> None:
    """Write a file that appears whole, with its mode and owner, and takes no other's place; raises SetupError.

    Only one run of the set-up at a time may do this.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)  # of a run that was interrupted
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        path.hardlink_to(draft)
        _sync_directory(path.parent)
    except FileExistsError:
        raise SetupError(f"{path} was made by somebody else meanwhile: run `kmsd init` again") from None
    finally:
        os.close(descriptor)
        draft.unlink()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
