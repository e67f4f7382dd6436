"""Other processes cannot read secret memory, and a low RLIMIT_MEMLOCK is told clearly."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Reads one canary straight into secret memory and one into ordinary memory, so that neither passes through the heap.
HOLDER = """
import os, sys
from kmsd.memory import Arena, Page
slot = Arena(65536, allow_fallback=False).lease(32)
page = Page.create()
ordinary = bytearray(32)
os.readv(0, [slot.view])
os.readv(0, [page.view[:32]])
os.readv(0, [ordinary])
print("ready", flush=True)
os.read(0, 1)
"""

# A privileged process may lock as much as it likes, so root becomes nobody first.
LIMITED = """
import os, resource, sys
from kmsd.memory import Arena, ArenaFullError, Page, SecretMemoryUnavailableError, mapping
if "fallback" in sys.argv:
    mapping._SYS_MEMFD_SECRET = 100000
if os.geteuid() == 0:
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (int(sys.argv[1]), int(sys.argv[1])))
try:
    arena = Arena(1 << 20)
    print("first chunk")
    while True:
        arena.lease(65536)
except (SecretMemoryUnavailableError, ArenaFullError) as error:
    print(type(error).__name__, error)
try:
    pages = [Page.create() for _ in range(64)]
except SecretMemoryUnavailableError as error:
    print("page:", error)
"""


@pytest.fixture
def holder() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def memory_of(pid: int) -> Iterator[tuple[str, bytes]]:
    """Each mapping that /proc/PID/mem lets us read, with its line of /proc/PID/maps."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="ascii").splitlines():
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            try:
                yield line, os.pread(memory.fileno(), end - start, start)
            except (OSError, OverflowError):  # unreadable; the vsyscall page lies beyond a signed offset
                yield line, b""


def test_another_process_finds_a_key_in_ordinary_memory_only(holder: "subprocess.Popen[bytes]") -> None:
    """Reading all of /proc/PID/mem finds the canary in a bytearray, and neither the one in the arena nor in a page."""
    assert holder.stdin is not None
    assert holder.stdout is not None
    in_arena, in_page, in_bytearray = (secrets.token_bytes(32) for _ in range(3))
    for canary in (in_arena, in_page, in_bytearray):
        holder.stdin.write(canary)
    holder.stdin.flush()
    assert holder.stdout.readline() == b"ready\n"

    found = dict(memory_of(holder.pid))

    assert any(in_bytearray in content for content in found.values())
    assert not any(in_arena in content or in_page in content for content in found.values())
    assert [content for line, content in found.items() if "/secretmem" in line] == [b"", b""]


@pytest.mark.parametrize("kind", ["memfd_secret", "fallback"])
def test_a_limit_of_locked_memory_is_named_in_the_error(kind: str) -> None:
    """With no room for one chunk there is no arena; with room for two the third lease fails; both say which limit."""
    for limit, first_line in ((16384, "SecretMemoryUnavailableError"), (2 * 65536 + 4096, "first chunk")):
        result = subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit), kind], capture_output=True, text=True, check=True, timeout=60
        )

        assert result.stdout.startswith(first_line)
        assert f"RLIMIT_MEMLOCK is {limit} bytes; raise it with LimitMEMLOCK=" in result.stdout
        assert "page: 4096 more bytes" in result.stdout
