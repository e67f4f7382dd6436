"""Where a file operation's result goes: a new file that gets its name only when it is complete, or a stream.

What an existing destination means:
- a regular file is refused, or with `force` replaced at once and whole (by rename; its other hard links keep the old
  content);
- a pipe or a character device is written to as it is;
- a directory, a block device, a socket, and a symbolic link to anything but a pipe or character device are refused:
  `force` replaces what was named, never what a link leads to.

A new file has no name while it is written (O_TMPFILE), so whatever ends the process leaves nothing behind. Only on
file systems without such files it has a hidden name, removed on every failure and interruption short of SIGKILL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from kmsd.api.errors import AlreadyExistsError, FileAccessError

# Nobody else may look until the file has its final mode.
_UNFINISHED_MODE = 0o600
# What open(2) answers to O_TMPFILE where it is not supported; EISDIR comes from systems that do not know the flag.
_NO_UNNAMED_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
# What posix_fallocate answers where reserving is not supported.
_NO_RESERVING = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV}

ParametersT = ParamSpec("ParametersT")
ResultT = TypeVar("ResultT")


class Stream:
    """A descriptor that is written to as it is. As a context manager, closes it if it was opened here."""

    def __init__(self, fd: int, *, owned: bool) -> None:
        self.fd = fd
        self._owned = owned

    def reserve(self, size: int) -> None:
        """Do nothing: there is nothing to reserve."""

    def finish(self, length: int, like: os.stat_result, *, sync: bool) -> None:
        """Do nothing: what was written is where it belongs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._owned:
            os.close(self.fd)


class NewFile:
    """A file that appears under its name by `finish`, whole; leaving the context without it leaves nothing.

    Raises FileAccessError when it cannot be made.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        self._path = path
        self._force = force
        self._hidden: str | None = None
        self.fd = -1
        # Everything is done relative to this descriptor: a renamed or replaced parent does not divert the file.
        self._directory = attempt(path, os.open, path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fd = self._create()
        except BaseException:
            self._discard()
            raise

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes: a full disk shows now, and writing is faster. Raises FileAccessError."""
        if size == 0:
            return
        try:
            os.posix_fallocate(self.fd, 0, size)
        except OSError as error:
            if error.errno not in _NO_RESERVING:
                raise _failure(self._path, error) from None

    def finish(self, length: int, like: os.stat_result, *, sync: bool) -> None:
        """Give the file its length, its mode and time, and last its name.

        Mode (permissions only, and none that the umask takes: the mode of a message says little of who may read its
        plaintext) and time of modification are those of `like` if that is a regular file; otherwise only the owner may
        read it. With `sync` it survives a power cut from now on. Raises AlreadyExistsError when
        meanwhile somebody else took the name, and FileAccessError.
        """
        try:
            os.ftruncate(self.fd, length)
            if stat.S_ISREG(like.st_mode):
                os.utime(self.fd, ns=(like.st_atime_ns, like.st_mtime_ns))
                os.fchmod(self.fd, like.st_mode & 0o777 & ~_umask())
            if sync:
                os.fsync(self.fd)
            self._give_name()
            if sync:
                os.fsync(self._directory)
        except FileExistsError:
            raise AlreadyExistsError(f"{self._path} exists") from None
        except OSError as error:
            raise _failure(self._path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._discard()

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            # The name is given through /proc (a process without it could not finish).
            if Path("/proc/self/fd").is_dir():
                return os.open(".", flags | os.O_TMPFILE, _UNFINISHED_MODE, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise _failure(self._path, error) from None
        self._hidden = self._hidden_name()
        return attempt(
            self._path, os.open, self._hidden, flags | os.O_CREAT | os.O_EXCL, _UNFINISHED_MODE, dir_fd=self._directory
        )

    def _give_name(self) -> None:
        name, directory = self._path.name, self._directory
        if self._hidden is None and not self._force:
            self._link(name)
            return
        if self._hidden is None:
            self._hidden = self._hidden_name()
            self._link(self._hidden)
        elif not self._force:
            # Not every file system that needs hidden names has links, so the name is taken by an empty file first:
            # that fails if it exists, and what the rename replaces is our own.
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory))
            try:
                self._rename_hidden()
            except BaseException:
                os.unlink(name, dir_fd=directory)
                raise
            return
        self._rename_hidden()

    def _rename_hidden(self) -> None:
        if self._hidden is not None:
            os.rename(self._hidden, self._path.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self._hidden = None

    def _link(self, name: str) -> None:
        # With dst_dir_fd Python calls linkat(2) with AT_SYMLINK_FOLLOW; without it link(2), which would link the
        # entry in /proc itself and fail with EXDEV.
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._directory)

    def _hidden_name(self) -> str:
        # Short enough for any name: file systems allow 255 bytes and the destination's own may have as many.
        return f".kmsd-{secrets.token_hex(8)}.part"

    def _discard(self) -> None:
        if self._hidden is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._hidden, dir_fd=self._directory)
            self._hidden = None
        for fd in (self.fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self.fd = self._directory = -1


Destination = NewFile | Stream


def open_destination(destination: str | os.PathLike[str] | int, *, source: os.stat_result, force: bool) -> Destination:
    """Return where to write, which nothing has been done to yet.

    A descriptor is borrowed and written to from its position. Raises AlreadyExistsError, and FileAccessError for what
    cannot be a destination, which includes the file that `source` describes.
    """
    if isinstance(destination, int):
        _refuse_source(attempt(f"descriptor {destination}", os.fstat, destination), source)
        return Stream(destination, owned=False)
    path = Path(destination)
    if str(destination).endswith("/") or path.name in {"", ".."}:
        raise FileAccessError(f"{destination}: is a directory")
    try:
        own = path.lstat()
        target = path.stat() if stat.S_ISLNK(own.st_mode) else own
    except FileNotFoundError:
        if path.is_symlink():
            raise FileAccessError(f"{path}: is a symbolic link to nothing") from None
        return NewFile(path, force=force)
    except OSError as error:
        raise _failure(path, error) from None
    _refuse_source(target, source)
    if stat.S_ISFIFO(target.st_mode) or stat.S_ISCHR(target.st_mode):
        return _open_stream(path, target)
    _refuse_irregular(path, own, target)
    if not force:
        raise AlreadyExistsError(f"{path} exists")
    return NewFile(path, force=True)


def _open_stream(path: Path, expected: os.stat_result) -> Stream:
    """Open a pipe or device that was looked at before, and nothing that was put in its place since."""
    stream = Stream(attempt(path, os.open, path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC), owned=True)
    found = os.fstat(stream.fd)
    if not os.path.samestat(found, expected) or stat.S_IFMT(found.st_mode) != stat.S_IFMT(expected.st_mode):
        with stream:
            raise FileAccessError(f"{path}: was exchanged while it was opened")
    return stream


def _umask() -> int:
    """Return this process's umask. The system call for it would set another for a moment, in all threads."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o077  # not to be learned: only the owner


def _refuse_irregular(path: Path, own: os.stat_result, target: os.stat_result) -> None:
    if stat.S_ISDIR(target.st_mode):
        raise FileAccessError(f"{path}: is a directory")
    if stat.S_ISLNK(own.st_mode):
        raise FileAccessError(f"{path}: is a symbolic link; name the file it leads to")
    if not stat.S_ISREG(target.st_mode):
        raise FileAccessError(f"{path}: is not a file, a pipe or a character device")


def _refuse_source(destination: os.stat_result, source: os.stat_result) -> None:
    if stat.S_ISREG(source.st_mode) and os.path.samestat(destination, source):
        raise FileAccessError("source and destination are the same file")


def attempt(
    name: object, call: Callable[ParametersT, ResultT], *args: ParametersT.args, **kwargs: ParametersT.kwargs
) -> ResultT:
    """Return what `call` returns; an OSError becomes a FileAccessError that names the file and the system's reason."""
    try:
        return call(*args, **kwargs)
    except OSError as error:
        raise _failure(name, error) from None


def _failure(name: object, error: OSError) -> FileAccessError:
    return FileAccessError(f"{name}: {os.strerror(error.errno or errno.EIO).lower()}")
