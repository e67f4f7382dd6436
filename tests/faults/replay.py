"""What a power cut may leave of recorded disk calls (pure).

Everything synced is there: what was written to a file before a sync of it began, and the names in a folder before a
sync of that. Of the rest, each file and each name by itself:
- a name may be there or not, whatever became of the file;
- each page of a file has what any of the unsynced writes left it with, the last one perhaps only up to a sector;
- the file's length is any that it had since its sync; where a page was not written it reads as zeros.

That is how file systems that journal their metadata behave (ext4, XFS), and somewhat worse, as they keep the order of
names. Worse still, and also drawn: any subset of the writes themselves, however they share pages.

A sync that fails is the last that is heard of what it should have written: the kernel holds those pages for clean from
then on, the process goes on to see them, and any of them may never reach the disk, whatever is synced later.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.support.faulty_disk import Call, Entry

PAGE_BYTES = 4096
SECTOR_BYTES = 512

Files = dict[str, bytes]


class Write(NamedTuple):
    """An unsynced change of a file's content: bytes at an offset, or with None the length it was cut or grown to."""

    offset: int
    data: bytes | None

    def applied(self, content: bytes) -> bytes:
        if self.data is None:
            return content[: self.offset].ljust(self.offset, b"\0")
        end = self.offset + len(self.data)
        return content[: self.offset].ljust(self.offset, b"\0") + self.data + content[end:]

    def torn(self, rng: random.Random) -> Write:
        """Return this write as far as some sector, none or all of it."""
        if self.data is None:
            return self
        ends = range(self.offset - self.offset % SECTOR_BYTES, self.offset + len(self.data), SECTOR_BYTES)
        return Write(self.offset, self.data[: max(0, rng.choice(ends) - self.offset)])


class File:
    """A file: what the process sees of it, what is synced, and what of the rest can still reach the disk."""

    def __init__(self, content: bytes = b"") -> None:
        self.seen = self.synced = content
        self.changes: list[Write] = []

    def write(self, write: Write) -> None:
        self.seen = write.applied(self.seen)
        self.changes.append(write)

    def sync(self, count: int) -> None:
        """The first `count` writes are on the disk now."""
        for write in self.changes[:count]:
            self.synced = write.applied(self.synced)
        del self.changes[:count]

    def fail_to_sync(self, count: int, rng: random.Random) -> None:
        """Any of the first `count` writes are lost."""
        self.changes[:count] = [write for write in self.changes[:count] if rng.random() < 0.5]

    def pages_after_cut(self, rng: random.Random) -> bytes:
        """Return a content of which each page is from some moment since the sync, by itself."""
        moments = [self.synced]
        for write in self.changes:
            moments.append(write.applied(moments[-1]))
        length = len(rng.choice(moments))
        pages = []
        for start in range(0, length, PAGE_BYTES):
            number = rng.randrange(len(moments))
            page = _page(moments[number], start)
            if number > 0 and rng.random() < 0.5:
                sectors = SECTOR_BYTES * rng.randint(0, PAGE_BYTES // SECTOR_BYTES)
                page = page[:sectors] + _page(moments[number - 1], start)[sectors:]
            pages.append(page)
        return b"".join(pages)[:length]

    def writes_after_cut(self, rng: random.Random) -> bytes:
        """Return a content with any subset of the writes, some of them torn."""
        content = self.synced
        for write in self.changes:
            match rng.choice(("kept", "lost", "torn")):
                case "kept":
                    content = write.applied(content)
                case "torn":
                    content = write.torn(rng).applied(content)
        return content


class Naming(NamedTuple):
    """A change of a folder: `name` names `file` now, or nothing; `source` is what it was renamed from."""

    name: str
    file: File | None
    source: str | None = None

    def apply(self, names: dict[str, File]) -> None:
        if self.source is not None:
            names.pop(self.source, None)
        if self.file is None:
            names.pop(self.name, None)
        else:
            names[self.name] = self.file


class Folder:
    """A folder: the names that are synced, as the process sees them, and what changed since the sync."""

    def __init__(self) -> None:
        self.synced: dict[str, File] = {}
        self.names: dict[str, File] = {}
        self.changes: list[Naming] = []

    def change(self, naming: Naming) -> None:
        naming.apply(self.names)
        self.changes.append(naming)

    def sync(self, count: int) -> None:
        """The first `count` changes are on the disk now."""
        for naming in self.changes[:count]:
            naming.apply(self.synced)
        del self.changes[:count]

    def fail_to_sync(self, count: int, rng: random.Random) -> None:
        """Nothing is known of the first `count` changes, as before."""

    def after_cut(self, rng: random.Random) -> dict[str, File]:
        names = dict(self.synced)
        for naming in self.changes:
            if rng.random() < 0.5:
                naming.apply(names)
        return names


class Disk:
    """Some folders with files, as a process sees them and as far as they are synced. Names are relative paths."""

    def __init__(self, folders: Iterable[str], files: Files, rng: random.Random) -> None:
        self._folders = {folder: Folder() for folder in folders}
        for path, content in files.items():
            folder, name = self._place(path)
            folder.names[name] = folder.synced[name] = File(content)
        self._rng = rng
        self._open: dict[int, File | Folder] = {}
        self._begun: dict[int, int] = {}
        self.notes: list[bytes] = []

    def replay(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._replay(entry)

    def _replay(self, entry: Entry) -> None:
        match entry.call:
            case Call.NOTE:
                self.notes.append(entry.data)
            case Call.OPEN:
                self._open[entry.fd] = self._opened(entry.data.decode(), entry.offset)
            case Call.WRITE:
                self._file(entry.fd).write(Write(entry.offset, entry.data))
            case Call.TRUNCATE:
                self._file(entry.fd).write(Write(entry.offset, None))
            case Call.SYNC_BEGIN:
                self._begun[entry.fd] = len(self._open[entry.fd].changes)
            case Call.SYNC:
                self._open[entry.fd].sync(self._begun[entry.fd])
            case Call.SYNC_FAILED:
                self._open[entry.fd].fail_to_sync(self._begun[entry.fd], self._rng)
            case Call.UNLINK:
                folder, name = self._place(entry.data.decode())
                folder.change(Naming(name, None))
            case Call.RENAME | Call.LINK:
                (source, old), (target, new) = map(self._place, entry.data.decode().split("\0"))
                assert source is target, "nothing is moved between folders"
                source.change(Naming(new, source.names[old], old if entry.call is Call.RENAME else None))

    def _place(self, path: str) -> tuple[Folder, str]:
        folder, _, name = path.rpartition("/")
        return self._folders[folder], name

    def _opened(self, path: str, flags: int) -> File | Folder:
        if path in self._folders:
            return self._folders[path]
        folder, name = self._place(path)
        if name not in folder.names:
            folder.change(Naming(name, File()))
        file = folder.names[name]
        if flags & os.O_TRUNC and file.seen:
            file.write(Write(0, None))
        return file

    def _file(self, fd: int) -> File:
        file = self._open[fd]
        assert isinstance(file, File)
        return file

    @property
    def files(self) -> Files:
        """Return what the process sees."""
        return self._contents({path: folder.names for path, folder in self._folders.items()}, lambda file: file.seen)

    def after_cut(self) -> Files:
        """Return what is there after a power cut at this moment, by chance."""
        left: tuple[Callable[[File], bytes], ...] = (
            lambda file: file.seen,
            lambda file: file.synced,
            lambda file: file.pages_after_cut(self._rng),
            lambda file: file.writes_after_cut(self._rng),
        )
        names = {path: folder.after_cut(self._rng) for path, folder in self._folders.items()}

        def content(file: File) -> bytes:
            return self._rng.choice(left)(file)

        return self._contents(names, content)

    @staticmethod
    def _contents(names: dict[str, dict[str, File]], content: Callable[[File], bytes]) -> Files:
        return {f"{folder}/{name}": content(file) for folder, found in names.items() for name, file in found.items()}


def _page(content: bytes, start: int) -> bytes:
    return content[start : start + PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
