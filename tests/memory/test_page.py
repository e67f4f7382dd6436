"""A page crosses processes by its descriptor, and is wiped for both sides."""

import mmap
import os
import pickle
import socket
from pathlib import Path

import pytest

from kmsd.memory import PAGE_BYTES, Page, mapping


@pytest.fixture(params=["memfd_secret", "memfd_create+mlock"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "memfd_secret":
        monkeypatch.setattr(mapping, "_SYS_MEMFD_SECRET", 100_000)  # no such system call
    return str(request.param)


def is_open(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").exists()


def test_a_key_crosses_to_another_process_and_back(kind: str) -> None:
    """The other process maps the same page from the descriptor it received, and both see each other's writes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, Page.create() as page:
        page.view[:3] = b"key"
        pid = os.fork()
        if pid == 0:
            _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
            other = Page.from_descriptor(descriptors[0])
            other.view[3:9] = b"+reply" if bytes(other.view[:3]) == b"key" else b"wrong!"
            os._exit(0)
        socket.send_fds(ours, [b"x"], [page.fd])
        os.waitpid(pid, 0)

        assert mapping.kind_of(page.fd) == kind
        assert bytes(page.view[:9]) == b"key+reply"


def test_closing_a_page_wipes_it_for_the_other_side(kind: str) -> None:
    """Whoever closes first leaves nothing to read."""
    page = Page.create()
    other = Page.from_descriptor(os.dup(page.fd))
    page.view[:3] = b"key"
    page.close()

    assert other.view == bytes(PAGE_BYTES)

    other.close()


def test_a_page_outlives_its_descriptor(kind: str) -> None:
    """The descriptor can go as soon as it was sent; the mapping stays until the page is closed."""
    with Page.create() as page:
        descriptor = page.fd
        page.close_descriptor()
        page.close_descriptor()
        page.view[:] = b"v" * PAGE_BYTES

        assert not is_open(descriptor)
        assert page.fd == -1


def test_a_closed_page_cannot_be_used(kind: str) -> None:
    """Closing twice is harmless, using the view afterwards is an error."""
    page = Page.create()
    descriptor = page.fd
    page.close()
    page.close()

    assert not is_open(descriptor)
    with pytest.raises(ValueError, match="released"):
        page.view[0] = 1


def test_closing_while_the_view_is_in_use_wipes_and_says_so() -> None:
    """The mapping stays for the user of the view, but holds nothing any more."""
    page = Page.create()
    page.view[:3] = b"key"
    user = pickle.PickleBuffer(page.view)  # holds on to the memory like a call into C does
    with pytest.raises(BufferError):
        page.close()

    assert bytes(user) == bytes(PAGE_BYTES)
    assert page.fd == -1

    user.release()
    page.close()


def test_a_descriptor_that_is_no_whole_page_is_refused_and_closed() -> None:
    """Memory behind the end of a file would end the process at the first touch."""
    descriptor = os.memfd_create("short")
    os.ftruncate(descriptor, PAGE_BYTES - 1)

    with pytest.raises(ValueError, match="holds 4095 bytes"):
        Page.from_descriptor(descriptor)
    assert not is_open(descriptor)


def test_the_other_side_cannot_shrink_a_page(kind: str) -> None:
    """A page never shrinks under the feet of who mapped it."""
    with Page.create() as page, pytest.raises(OSError, match=r"Invalid argument|not permitted"):
        os.ftruncate(page.fd, 0)


def test_a_page_in_the_best_memory_cannot_be_read_as_a_file() -> None:
    """With the descriptor one has to map it; read(2) gets nothing."""
    with Page.create() as page:
        page.view[:3] = b"key"

        with pytest.raises(OSError, match="Invalid argument"):
            os.read(page.fd, 3)


def test_a_page_is_not_larger_than_a_page() -> None:
    """The constant is the page size here, so a page costs what it says."""
    assert mmap.PAGESIZE % PAGE_BYTES == 0
