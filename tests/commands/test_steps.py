"""The files that `kmsd init` writes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmsd.commands.steps import SetupError, write_new


@contextmanager
def _full_after(length: int) -> Iterator[None]:
    """No file gets longer: a write that crosses the end is cut short, and the next fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _owner() -> tuple[int, int]:
    return os.getuid(), os.getgid()


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    """A PIN that was cut short would open nothing, and would be taken for the PIN."""
    path = tmp_path / "pin"
    with _full_after(10), pytest.raises(SetupError, match=r"pin cannot be written: .*once it can"):
        write_new(path, bytes(32), mode=0o640, owner=_owner())
    assert list(tmp_path.iterdir()) == []
    write_new(path, bytes(32), mode=0o640, owner=_owner())
    assert path.read_bytes() == bytes(32)
    assert path.stat().st_mode & 0o7777 == 0o640


def test_a_file_takes_no_others_place(tmp_path: Path) -> None:
    """Also a link that leads nowhere is somebody's."""
    path = tmp_path / "pin"
    path.symlink_to("nowhere")
    with pytest.raises(SetupError, match="made by somebody else"):
        write_new(path, b"1", mode=0o600, owner=_owner())
    assert list(tmp_path.iterdir()) == [path]
