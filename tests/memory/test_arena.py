"""Slots are zeroed, apart from each other, and gone when released; the arena keeps to its limit."""

import ctypes
import faulthandler
import mmap
import os
import pickle
import resource
import signal
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from kmsd.memory import Arena, ArenaFullError, SecretMemoryUnavailableError, Slot, default_limit_bytes, mapping
from kmsd.memory.arena import CHUNK_BYTES

# No such system call: what a kernel without memfd_secret(2) answers.
NO_SUCH_CALL = 100_000
# linux/mman.h; Python's mmap module lacks it.
MAP_FIXED = 0x10


@pytest.fixture
def arena() -> Arena:
    return Arena(2 * CHUNK_BYTES)


def secret_mappings() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines() if "/secretmem" in line]


def descriptors() -> list[str]:
    return [path.name for path in Path("/proc/self/fd").iterdir()]


def test_a_slot_has_the_size_asked_for_and_is_zeroed(arena: Arena) -> None:
    """A lease is writable bytes, all zero, exactly as many as were asked for."""
    for size in (1, 31, 32, 33, 76, 4096, CHUNK_BYTES):
        with arena.lease(size) as slot:
            assert slot.view == bytes(size)
            assert slot.view.format == "B"
            assert not slot.view.readonly


def test_a_released_slot_is_wiped(arena: Arena) -> None:
    """What the next holder of the memory finds is zeros, and what the last one sees through a slice is zeros too."""
    slot = arena.lease(32)
    kept = slot.view[:]
    slot.view[:] = b"k" * 32
    slot.release()

    assert kept == bytes(32)
    assert arena.lease(32).view == bytes(32)


def test_a_released_slot_cannot_be_used(arena: Arena) -> None:
    """A late use of the view raises, and does not show another's key."""
    with arena.lease(32) as slot:
        pass

    with pytest.raises(ValueError, match="released"):
        slot.view[0] = 1


def test_releasing_twice_does_not_free_another_lease(arena: Arena) -> None:
    """The second release does nothing, although the memory has a new holder."""
    first = arena.lease(32)
    first.release()
    second = arena.lease(32)
    second.view[:] = b"s" * 32
    first.release()

    assert second.view == b"s" * 32
    assert arena.used_bytes == 32


def test_a_slot_whose_view_is_in_use_is_wiped_but_stays_leased(arena: Arena) -> None:
    """Memory that a foreign call still points to is not handed out again."""
    slot = arena.lease(32)
    slot.view[:] = b"k" * 32
    user = pickle.PickleBuffer(slot.view)  # holds on to the memory like a call into C does
    with pytest.raises(BufferError):
        slot.release()

    assert bytes(user) == bytes(32)
    assert arena.used_bytes == 32

    user.release()
    slot.release()

    assert arena.used_bytes == 0


def test_the_repr_of_a_slot_shows_no_content(arena: Arena) -> None:
    """A slot in a log or traceback is its size."""
    slot = arena.lease(3)
    slot.view[:] = b"key"

    assert repr(slot) == "<Slot of 3 bytes>"

    slot.release()

    assert repr(slot) == "<Slot, released>"


@pytest.mark.parametrize("size", [-1, 0, CHUNK_BYTES + 1])
def test_a_size_no_slot_has_is_refused(arena: Arena, size: int) -> None:
    """Asking for nothing, or for more than a chunk, is a mistake of the caller."""
    with pytest.raises(ValueError, match="a slot holds 1 to 65536 bytes"):
        arena.lease(size)


def test_a_full_arena_says_so_and_works_again_after_a_release(arena: Arena) -> None:
    """The limit holds to the byte; one release makes room for one lease."""
    slots = [arena.lease(4096) for _ in range(arena.limit_bytes // 4096)]

    assert arena.used_bytes == arena.limit_bytes
    with pytest.raises(ArenaFullError, match="131072 of 131072 bytes are leased"):
        arena.lease(1)

    slots[5].release()
    arena.lease(4096)


def test_small_slots_that_were_released_serve_large_leases(arena: Arena) -> None:
    """Memory once cut into the smallest slots is joined again, so no mix of sizes wears the arena out."""
    for size in (32, 4096, 32, CHUNK_BYTES, 64):
        slots = [arena.lease(size) for _ in range(arena.limit_bytes // size)]
        for slot in slots:
            slot.release()

        assert arena.used_bytes == 0


def test_random_slots_differ(arena: Arena) -> None:
    """Random slots are filled to the end, also above the 256 bytes that getrandom(2) gives without a break."""
    for size in (32, 5000):
        first, second = arena.random(size), arena.random(size)

        assert first.view != second.view
        assert first.view[-16:] != bytes(16)


def test_wiping_zeroes_every_slot_and_ends_every_lease(arena: Arena) -> None:
    """After a seal nothing is left to read, and who still holds a slot gets an error instead of a key of zeros."""
    slots = [arena.random(size) for size in (32, 76, 4096, CHUNK_BYTES)]
    kept = [slot.view[:] for slot in slots]
    arena.wipe()

    assert all(not any(view) for view in kept)
    assert arena.used_bytes == 0
    for slot in slots:
        with pytest.raises(ValueError, match="released"):
            bytes(slot.view)


def test_a_late_release_after_wiping_is_harmless(arena: Arena) -> None:
    """A slot from before the seal can be released after it, without touching what is leased since."""
    old = arena.random(32)
    kept = old.view[:]
    arena.wipe()
    new = arena.lease(32)
    new.view[:] = b"n" * 32
    old.release()
    kept[:] = b"x" * 32

    assert new.view == b"n" * 32
    assert arena.used_bytes == 32


def test_wiping_while_a_view_is_in_use_zeroes_it(arena: Arena) -> None:
    """A foreign call that has not returned does not keep the arena from being sealed."""
    slot = arena.random(32)
    user = pickle.PickleBuffer(slot.view)
    arena.wipe()

    assert bytes(user) == bytes(32)


def test_no_descriptor_of_the_arena_stays_open() -> None:
    """There is nothing that root could take with pidfd_getfd(2) and map."""
    before = descriptors()
    arena = Arena(CHUNK_BYTES)

    assert descriptors() == before
    assert arena.kind == "memfd_secret"


def test_the_memory_is_unmapped_with_its_last_view() -> None:
    """Dropped chunks do not count against RLIMIT_MEMLOCK, and a view that is left never points into nothing."""
    before = len(secret_mappings())
    arena = Arena(CHUNK_BYTES)
    kept = arena.lease(32).view[:]
    arena.wipe()
    kept[:] = b"k" * 32

    assert len(secret_mappings()) == before + 1

    del kept

    assert len(secret_mappings()) == before


def test_a_dropped_arena_goes_at_once_but_leaves_its_slots_usable() -> None:
    """Memory that may be locked is scarce, so it does not wait for the garbage collector."""
    before = len(secret_mappings())
    slot = Arena(CHUNK_BYTES).lease(32)
    kept = slot.view[:]
    slot.view[:] = b"k" * 32

    assert len(secret_mappings()) == before + 1

    slot.release()
    slot.release()

    assert kept == bytes(32)

    del kept, slot

    assert len(secret_mappings()) == before


def test_a_forked_child_does_not_see_the_arena(arena: Arena) -> None:
    """The memory is not there in a child: touching it ends the child."""
    slot = arena.random(32)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os._exit(slot.view[0] & 0)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == -signal.SIGSEGV


def test_a_forked_child_that_drops_the_arena_unmaps_nothing_of_its_own() -> None:
    """At the arena's address the child may have something else by then."""
    before = set(secret_mappings())
    arena = Arena(CHUNK_BYTES)
    ((start, _),) = [line.split()[0].split("-") for line in set(secret_mappings()) - before]
    address = int(start, 16)
    pid = os.fork()
    if pid == 0:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        mapping._libc.mmap(address, CHUNK_BYTES, mmap.PROT_READ, flags, -1, 0)
        del arena
        os._exit(int(ctypes.string_at(address, 1) != b"\0"))
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0


def test_without_memfd_secret_the_memory_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback works the same, is not swapped, not dumped and not inherited, and the arena says what it is."""
    monkeypatch.setattr(mapping, "_SYS_MEMFD_SECRET", NO_SUCH_CALL)
    arena = Arena(2 * CHUNK_BYTES)
    slots = [arena.random(CHUNK_BYTES), arena.random(CHUNK_BYTES)]
    part = Path("/proc/self/smaps").read_text(encoding="ascii").partition("/memfd:kmsd")[2]
    flags = part[part.index("VmFlags:") :].splitlines()[0].split()

    assert arena.kind == "memfd_create+mlock"
    assert {"lo", "dd", "dc"} <= set(flags)
    assert slots[0].view != slots[1].view


def test_without_memfd_secret_and_without_leave_to_fall_back_there_is_no_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal names the kernel's setting."""
    monkeypatch.setattr(mapping, "_SYS_MEMFD_SECRET", NO_SUCH_CALL)

    with pytest.raises(SecretMemoryUnavailableError, match=r"secretmem\.enable=1"):
        Arena(CHUNK_BYTES, allow_fallback=False)


def test_an_arena_that_began_with_memfd_secret_does_not_fall_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `kind` says stays true for every chunk."""
    arena = Arena(2 * CHUNK_BYTES)
    arena.lease(CHUNK_BYTES)
    monkeypatch.setattr(mapping, "_SYS_MEMFD_SECRET", NO_SUCH_CALL)

    with pytest.raises(ArenaFullError, match="cannot grow beyond 1 chunks"):
        arena.lease(32)


def test_a_limit_below_one_chunk_is_refused_with_advice() -> None:
    """Half of an old 64 KiB RLIMIT_MEMLOCK is too little, and the message says what to raise."""
    with pytest.raises(SecretMemoryUnavailableError, match="LimitMEMLOCK="):
        Arena(32 * 1024)


@pytest.mark.parametrize(
    ("soft", "expected"),
    [(8 << 20, 4 << 20), (64 << 10, 32 << 10), (1 << 30, 8 << 20), (resource.RLIM_INFINITY, 8 << 20)],
)
def test_the_default_limit_is_half_of_what_may_be_locked(
    monkeypatch: pytest.MonkeyPatch, soft: int, expected: int
) -> None:
    """Half of RLIMIT_MEMLOCK, at most 8 MiB."""
    monkeypatch.setattr(resource, "getrlimit", lambda _limit: (soft, soft))

    assert default_limit_bytes() == expected


def test_threads_that_lease_at_once_never_share_memory() -> None:
    """Each thread finds its own mark in its slots, while blocks are halved, joined and refused around it."""
    arena = Arena(2 * CHUNK_BYTES)
    clashes: list[int] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # many more chances to go wrong

    def work(mark: int) -> None:
        for turn in range(400):
            size = 32 << (turn * mark) % 12
            try:
                slot = arena.lease(size)
            except ArenaFullError:
                continue
            if any(slot.view):
                clashes.append(mark)
            slot.view[:] = bytes([mark]) * size
            if slot.view != bytes([mark]) * size:
                clashes.append(mark)
            slot.release()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in (1, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)

    assert clashes == []
    assert arena.used_bytes == 0


class ArenaMachine(RuleBasedStateMachine):
    """Whatever is leased, released, released again and wiped, every slot keeps what its holder wrote."""

    live = Bundle("live")
    dead = Bundle("dead")

    @initialize(chunks=st.integers(1, 3))
    def make(self, chunks: int) -> None:
        self.arena = Arena(chunks * CHUNK_BYTES)
        self.slots: list[Slot] = []
        self.written: dict[int, bytes] = {}

    @rule(target=live, size=st.integers(1, CHUNK_BYTES) | st.sampled_from([32, 76, 4096]), mark=st.integers(1, 255))
    def lease(self, size: int, mark: int) -> MultipleResults[int]:
        try:
            slot = self.arena.lease(size)
        except ArenaFullError:
            return multiple()
        assert slot.view == bytes(size)
        number = len(self.slots)
        self.slots.append(slot)
        slot.view[:] = self.written[number] = bytes([mark]) * size
        return multiple(number)

    @rule(target=dead, number=consumes(live))
    def release(self, number: int) -> int:
        self.slots[number].release()
        self.written.pop(number, None)
        return number

    @rule(number=dead)
    def release_again(self, number: int) -> None:
        self.slots[number].release()

    @rule()
    def wipe(self) -> None:
        self.arena.wipe()
        self.written.clear()

    @invariant()
    def every_slot_holds_what_was_written(self) -> None:
        for number, content in self.written.items():
            assert self.slots[number].view == content

    @invariant()
    def what_is_leased_is_counted(self) -> None:
        used = self.arena.used_bytes
        assert sum(len(content) for content in self.written.values()) <= used <= self.arena.limit_bytes

    @invariant()
    def an_empty_arena_gives_all_of_itself(self) -> None:
        if not self.written:
            slots = [self.arena.lease(CHUNK_BYTES) for _ in range(self.arena.limit_bytes // CHUNK_BYTES)]
            for slot in slots:
                slot.release()

    def teardown(self) -> None:
        # Hypothesis keeps its machines for a while, and memory that may be locked is scarce.
        self.slots.clear()
        del self.arena


TestArenaMachine = ArenaMachine.TestCase
