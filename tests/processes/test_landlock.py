"""Which files a restricted process still opens."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kmsd.processes import harden_process
from kmsd.processes.landlock import LandlockUnavailableError, Reach, restrict_files, version
from tests.processes.test_sandbox import in_child

try:
    VERSION = version()
except LandlockUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)


def refused(work: Callable[[], object]) -> bool:
    try:
        work()
    except OSError as error:
        return error.errno in {errno.EACCES, errno.EXDEV, errno.EPERM}
    return False


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """One to read, one to write, and another."""
    found = tmp_path / "read", tmp_path / "write", tmp_path / "other"
    for folder in found:
        folder.mkdir()
        (folder / "file").write_text("content")
    return found


def restricted(reach: Reach, work: Callable[[], bool]) -> bool:
    def child() -> bool:
        harden_process()
        restrict_files(reach)
        return work()

    return in_child(child)


def test_only_what_is_in_reach_is_opened(folders: tuple[Path, Path, Path]) -> None:
    """Reading where one may read, both where one may write, nothing elsewhere."""
    read, write, other = folders

    def work() -> bool:
        (write / "new").write_text("x")
        (write / "new").rename(write / "file")
        (write / "folder").mkdir()
        (write / "folder").rmdir()
        return (
            (read / "file").read_text() == "content"
            and os.listdir(read) == ["file"]  # noqa: PTH208 - names
            and refused(lambda: (read / "file").write_text("x"))
            and refused(lambda: os.truncate(read / "file", 0))
            and refused((read / "new").touch)
            and refused((read / "file").unlink)
            and refused((other / "file").read_text)
            and refused(lambda: os.listdir(other))  # noqa: PTH208 - names
            and refused((other / "new").touch)
            and refused(lambda: Path("/etc/passwd").read_text())
        )

    assert restricted(Reach(readable=(read,), writable=(write,)), work)
    assert (other / "file").read_text() == "content"


def test_nothing_is_executed(tmp_path: Path) -> None:
    """Not even from where one may read."""
    assert restricted(Reach(readable=(Path("/"),)), lambda: refused(lambda: os.execv("/bin/true", ["true"])))  # noqa: S606 - it is refused


def test_no_link_leads_out_of_reach(folders: tuple[Path, Path, Path]) -> None:
    """A symbolic link is followed to where it leads, and a hard link out of reach cannot be made."""
    read, write, other = folders
    (read / "link").symlink_to(other / "file")

    def work() -> bool:
        return (
            refused((read / "link").read_text)
            and refused(lambda: (write / "link").symlink_to(other))
            and refused(lambda: (other / "file").rename(write / "taken"))
            and refused(lambda: (write / "linked").hardlink_to(other / "file"))
        )

    assert restricted(Reach(readable=(read,), writable=(write,)), work)


def test_a_single_file_can_be_in_reach(folders: tuple[Path, Path, Path]) -> None:
    """Its neighbours are not."""
    read, _, other = folders

    def work() -> bool:
        return (other / "file").read_text() == "content" and refused((read / "file").read_text)

    assert restricted(Reach(readable=(other / "file",)), work)


def test_what_does_not_exist_counts_for_nothing(tmp_path: Path) -> None:
    """Lists name what some hosts have."""
    absent = tmp_path / "absent"

    assert restricted(Reach(readable=(absent,), writable=(absent,)), lambda: refused(absent.touch))


def test_open_descriptors_stay_open(folders: tuple[Path, Path, Path]) -> None:
    """What a worker was given, it uses."""
    _, _, other = folders
    descriptor = os.open(other / "file", os.O_RDWR)

    assert restricted(Reach(), lambda: os.write(descriptor, b"X") == 1 and os.pread(descriptor, 2, 0) == b"Xo")
    os.close(descriptor)


@pytest.mark.skipif(VERSION < 4, reason="Landlock restricts TCP from version 4 on")
def test_the_network_is_out_of_reach_unless_it_is_named() -> None:
    """Also where a filter of system calls would let sockets be made."""

    def connect() -> bool:
        with socket.socket() as sock:
            return refused(lambda: sock.connect(("127.0.0.1", 9)))

    assert restricted(Reach(), connect)
    assert not restricted(Reach(network=True), connect)


@pytest.mark.skipif(VERSION < 6, reason="Landlock restricts abstract sockets from version 6 on")
def test_abstract_sockets_are_out_of_reach_unless_they_are_named() -> None:
    """They have no file whose mode could keep anybody out."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0kmsd-test-{os.getpid()}")
        listener.listen()

        def connect() -> bool:
            with socket.socket(socket.AF_UNIX) as sock:
                return refused(lambda: sock.connect(listener.getsockname()))

        assert restricted(Reach(), connect)
        assert not restricted(Reach(local=True), connect)
