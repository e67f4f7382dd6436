"""A backup read as a stream, of any length, in the memory of two chunks. What it yields is authentic."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kmsd.backup import header as parts
from kmsd.backup.chunks import SEALED_CHUNK_BYTES, ChunkChangedError, ChunkOpener
from kmsd.backup.header import BackupError, BackupHeader


class BackupReader:
    """Reads one backup through `read(n)`, which returns fewer than n bytes only at the end; `name` is for messages.

    Everything raises BackupError for what is not as it was written, and what `read` raises.
    """

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        self._read = read
        self._name = name
        start = read(len(parts.MAGIC) + parts.LENGTH_BYTES)
        length = parts.body_length(start, name)
        body = read(length)
        if len(body) < length:
            raise self._truncated("inside its header")
        self.header: BackupHeader
        self.header, self._prefix = parts.parse(start, body, name)
        self._commitment = read(parts.COMMITMENT_BYTES)
        if len(self._commitment) < parts.COMMITMENT_BYTES:
            raise self._truncated("behind its header")

    def unlock(self, data_key: memoryview, into: memoryview) -> None:
        """Check that the header is the one that was written with `data_key`; leave the body's key in `into`."""
        if not parts.is_commitment(self._commitment, parts.derive_keys(data_key, self._prefix, into)):
            into[:] = bytes(len(into))
            raise BackupError(f"{self._name}: the backup's header was changed, or belongs to another backup")

    def pieces(self, key: memoryview) -> Iterator[bytes]:
        """Yield the body; the first error ends it, and what came before must not be used then."""
        opener = ChunkOpener(key)
        chunk = self._read(SEALED_CHUNK_BYTES)
        last = False
        while not last:
            following = self._read(SEALED_CHUNK_BYTES)
            last = not following
            try:
                yield opener.open(chunk, last=last)
            except ChunkChangedError as error:
                raise self._changed(error, last=last) from None
            chunk = following

    def _changed(self, error: ChunkChangedError, *, last: bool) -> BackupError:
        where = f"chunk {error.number} of its body does not authenticate"
        why = "it was changed, or the file was truncated" if last else "it was changed"
        return BackupError(f"{self._name}: {where}: {why}")

    def _truncated(self, where: str) -> BackupError:
        return BackupError(f"{self._name}: the backup ends {where}: it was truncated")
