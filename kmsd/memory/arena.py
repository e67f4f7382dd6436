"""Leased secret memory: where every key of this process lives while it is in use.

The arena is a list of chunks that grows on demand up to a limit (a memfd_secret cannot grow: its second ftruncate
fails). Slots come in sizes that are powers of two. Whoever leases takes the first free slot of the fitting size; when
there is none, a larger free slot is halved, then a chunk is added, then free halves are joined again. Joining lazily
keeps lease and release on the hot path at one list operation each.

Threads: lease and release may be called from any thread (the free lists change only by atomic `append` and `pop`,
anything longer holds a lock); one slot belongs to one thread at a time. `wipe` is for the thread that uses the slots.
"""

import os
import resource
import threading
import weakref
from types import TracebackType
from typing import Self

from kmsd.memory.mapping import (
    MemoryKind,
    SecretMemoryUnavailableError,
    create_descriptor,
    fill_random,
    kind_of,
    map_descriptor,
)

# Large enough for any key material or plaintext (an RSA-4096 private key in DER is 2.4 KiB, Encrypt takes 4 KiB), and
# small enough that an idle daemon locks little of the usual 8 MiB.
CHUNK_BYTES = 64 * 1024
# An AES-256 key, the commonest content; smaller slots would save nothing that is leased often.
_SMALLEST_BYTES = 32
# DESIGN 13: also the whole of RLIMIT_MEMLOCK where systemd 240 or newer sets it.
_LARGEST_DEFAULT_BYTES = 8 * 1024 * 1024


class ArenaFullError(RuntimeError):
    """No secret memory is left for this lease; it may succeed after others are released."""


class _Block:
    """A piece of a chunk: at `offset`, as long as its `view`."""

    __slots__ = ("chunk", "offset", "view")

    def __init__(self, chunk: memoryview, offset: int, size: int) -> None:
        self.chunk = chunk
        self.offset = offset
        self.view = chunk[offset : offset + size]


class _Shelf:
    """All free blocks of one size."""

    __slots__ = ("free", "size", "zeros")

    def __init__(self, size: int) -> None:
        self.size = size
        self.free: list[_Block] = []
        self.zeros = bytes(size)


class Slot:
    """Leased secret memory, zeroed when it is handed out; as a context manager it is released at the end.

    `view` is writable and exactly as long as was asked for. After release it can no longer be used (ValueError). A
    slice of it that is kept beyond the release would show the next holder's key: keep none. A slot that is dropped
    without release stays leased until `Arena.wipe`.
    """

    __slots__ = ("_block", "_leased", "_shelf", "view")

    def __init__(self, block: _Block, shelf: _Shelf, size: int, leased: "weakref.ref[set[Slot]]") -> None:
        self._block = block
        self._shelf = shelf
        self._leased = leased  # weak, as it holds this slot: an arena that is dropped goes at once
        self.view = block.view[:size]

    def release(self) -> None:
        """Wipe the memory and give it back; a second call, or one after `Arena.wipe`, does nothing.

        Raises BufferError when something still uses the view; the memory is wiped then, but stays leased.
        """
        leased = self._leased()
        if leased is not None:
            try:
                leased.remove(self)  # one atomic step: nobody can release twice
            except KeyError:
                return
        self._block.view[:] = self._shelf.zeros
        try:
            self.view.release()
        except BufferError:
            if leased is not None:
                leased.add(self)
            raise
        self._shelf.free.append(self._block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        try:
            return f"<Slot of {len(self.view)} bytes>"
        except ValueError:
            return "<Slot, released>"


class Arena:
    """Secret memory of at most `limit_bytes`, handed out in slots.

    `kind` says how it is kept secret (a `MemoryKind`). `allow_fallback` permits memory that is locked but readable by
    root where the kernel has no memfd_secret(2). Raises `SecretMemoryUnavailableError` when not even one chunk can be
    had.
    """

    def __init__(self, limit_bytes: int, *, allow_fallback: bool = True) -> None:
        if limit_bytes < CHUNK_BYTES:
            raise SecretMemoryUnavailableError(
                f"{limit_bytes} bytes are too few for secret memory, which comes in chunks of {CHUNK_BYTES}; the "
                "default is half of RLIMIT_MEMLOCK (LimitMEMLOCK= in the unit, `ulimit -l` in a shell)"
            )
        self.limit_bytes = limit_bytes
        self._allow_fallback = allow_fallback
        self._chunks: list[memoryview] = []
        self._leased: set[Slot] = set()
        self._leased_reference = weakref.ref(self._leased)
        self._slow_path = threading.Lock()
        self._clear_shelves()
        self.kind = self._grow()
        self._allow_fallback = self.kind is MemoryKind.LOCKED  # later chunks are no worse than the first

    @property
    def used_bytes(self) -> int:
        """Bytes that are leased, each lease rounded up to its slot's size."""
        free = sum(shelf.size * len(shelf.free) for shelf in self._shelves)
        return len(self._chunks) * CHUNK_BYTES - free

    def lease(self, size: int) -> Slot:
        """Return a zeroed slot of `size` bytes. Raises `ArenaFullError`, and ValueError for a size no slot has."""
        if not 0 < size <= CHUNK_BYTES:
            raise ValueError(f"a slot holds 1 to {CHUNK_BYTES} bytes, not {size}")
        shelf = self._shelf_by_bits[(size - 1).bit_length()]
        try:
            block = shelf.free.pop()
        except IndexError:
            with self._slow_path:
                block = self._find(shelf)
        slot = Slot(block, shelf, size, self._leased_reference)
        self._leased.add(slot)
        return slot

    def random(self, size: int) -> Slot:
        """Return a slot of `size` fresh bytes from getrandom(2), which went nowhere else."""
        slot = self.lease(size)
        fill_random(slot.view)
        return slot

    def wipe(self) -> None:
        """Zero all of it and end every lease: what is used later raises, and does not work with a key of zeros.

        The chunks are given up, so that a slice someone kept cannot reach memory that is leased afterwards.
        """
        with self._slow_path:
            for chunk in self._chunks:
                chunk[:] = bytes(CHUNK_BYTES)
            while self._leased:
                _invalidate(self._leased.pop())
            self._clear_shelves()
            self._chunks.clear()

    def _clear_shelves(self) -> None:
        shelves = [_Shelf(_SMALLEST_BYTES)]
        while shelves[-1].size < CHUNK_BYTES:
            shelves.append(_Shelf(2 * shelves[-1].size))
        self._shelves = tuple(shelves)
        smaller = (_SMALLEST_BYTES - 1).bit_length()  # sizes of fewer bits go to the smallest shelf
        self._shelf_by_bits = (shelves[0],) * smaller + self._shelves

    def _find(self, shelf: _Shelf) -> _Block:
        block = self._halve_larger(shelf)
        if block is None and (len(self._chunks) + 1) * CHUNK_BYTES <= self.limit_bytes:
            self._grow_or_refuse()
            block = self._halve_larger(shelf)
        if block is None:
            self._join_halves()
            block = self._halve_larger(shelf)
        if block is None:
            raise ArenaFullError(
                f"secret memory is full: {self.used_bytes} of {self.limit_bytes} bytes are leased, "
                f"and no {shelf.size} free bytes lie together"
            )
        return block

    def _halve_larger(self, wanted: _Shelf) -> _Block | None:
        """Take the smallest free block that is at least as large as wanted, and halve it until it fits."""
        for shelf in self._shelves[self._shelves.index(wanted) :]:
            try:
                block = shelf.free.pop()
            except IndexError:
                continue
            for smaller in reversed(self._shelves[: self._shelves.index(shelf)]):
                if smaller.size < wanted.size:
                    break
                smaller.free.append(_Block(block.chunk, block.offset + smaller.size, smaller.size))
                block = _Block(block.chunk, block.offset, smaller.size)
            return block
        return None

    def _join_halves(self) -> None:
        """Join free neighbours that once were one block, from the smallest size up."""
        for shelf, larger in zip(self._shelves, self._shelves[1:], strict=False):
            # Another thread may lease while we do this, so each block is taken by one atomic pop.
            blocks = {}
            for _ in range(len(shelf.free)):
                try:
                    block = shelf.free.pop()
                except IndexError:
                    break
                blocks[id(block.chunk), block.offset] = block
            while blocks:
                (chunk_id, offset), block = blocks.popitem()
                if blocks.pop((chunk_id, offset ^ shelf.size), None):  # sizes are powers of two: the twin's offset
                    larger.free.append(_Block(block.chunk, offset & ~shelf.size, larger.size))
                else:
                    shelf.free.append(block)

    def _grow_or_refuse(self) -> None:
        try:
            self._grow()
        except (SecretMemoryUnavailableError, OSError) as error:
            raise ArenaFullError(f"secret memory cannot grow beyond {len(self._chunks)} chunks: {error}") from error

    def _grow(self) -> MemoryKind:
        descriptor = create_descriptor(CHUNK_BYTES, allow_fallback=self._allow_fallback)
        try:
            chunk = map_descriptor(descriptor, CHUNK_BYTES)
            kind = kind_of(descriptor)
        finally:
            os.close(descriptor)  # root could take an open one with pidfd_getfd(2) and map it
        self._chunks.append(chunk)
        self._shelves[-1].free.append(_Block(chunk, 0, CHUNK_BYTES))
        return kind


def default_limit_bytes() -> int:
    """Return half of RLIMIT_MEMLOCK (the other half is for pages that cross processes), at most 8 MiB."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return _LARGEST_DEFAULT_BYTES if soft == resource.RLIM_INFINITY else min(soft // 2, _LARGEST_DEFAULT_BYTES)


def _invalidate(slot: Slot) -> None:
    try:
        slot.view.release()
    except BufferError:  # a call that uses it has not returned; it sees zeros
        return
