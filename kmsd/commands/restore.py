"""A store out of a backup, into a state that is empty.

What is made appears in its place last, by one link: whatever ends this, there is no store or the whole one, and it can
be run again. The audit trail tells of it first.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmsd.audit.record import Actor, Kind, Record
from kmsd.audit.writer import SyncMode, Trail
from kmsd.commands.offline import Opened, Opening
from kmsd.commands.steps import SetupError
from kmsd.store.rows import BackupRow

_MAKING = "restoring-"
_NAME = "store.sqlite"
# What SQLite keeps beside a store that was not closed: they belong to it, and to no other.
_COMPANIONS = ("-wal", "-shm", "-journal")


def restore(opening: Opening, actor: Actor) -> bool:
    """Make the site's store out of the backup; `actor` is who does it. Raises what prevents it."""
    site = opening.site

    async def make(opened: Opened) -> None:
        with _folder(site.store.parent) as folder:
            store = await opened.restoration.build(folder / _NAME)
            try:
                made = _backup_row(opened)
                trail = Trail.open(site.audit, sync=SyncMode.OS, clock=time.time)
                try:
                    seen = max(made.store_sequence, opened.seen, trail.store_sequence)
                    await opened.restoration.adopt(store, made=made, seen=seen, to_new_token=opening.needs_token)
                    trail.append([_record(opened, actor, made, store.sequence)])
                    await trail.sync()
                finally:
                    trail.close()
            finally:
                await store.close()
            _put(folder / _NAME, site.store)
        print(f"made  {site.store} out of {opening.name}", flush=True)

    with _alone(site.store):
        opening.run(make)
    return True


def check_no_store(store: Path) -> None:
    """Raise SetupError when there is a store, or what SQLite left of one."""
    for path in (store, *(store.with_name(store.name + companion) for companion in _COMPANIONS)):
        if os.path.lexists(path):
            raise SetupError(f"{path} is there, and a restore replaces nothing: stop kmsd and move it away")


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """See that there is no store, and that nobody else makes one meanwhile."""
    descriptor = os.open(store.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SetupError(f"another process works on {store.parent}: try again when it has ended") from None
    else:
        check_no_store(store)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _folder(state: Path) -> Iterator[Path]:
    """Make the folder in which the store is made, beside its place; removed at the end, with what others left."""
    for left in state.glob(f"{_MAKING}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_MAKING, dir=state) as folder:
        yield Path(folder)


def _backup_row(opened: Opened) -> BackupRow:
    header = opened.reader.header
    return BackupRow(
        creation_ms=header.creation_ms,
        store_sequence=header.store_sequence,
        sha256=opened.file.sha256,
        length=opened.file.length,
        version=1,
    )


def _record(opened: Opened, actor: Actor, made: BackupRow, sequence: int) -> Record:
    created = dt.datetime.fromtimestamp(made.creation_ms / 1000, dt.UTC)
    return Record(
        kind=Kind.SYSTEM,
        event_name="RestoreStore",
        actor=actor,
        request_id="",
        read_only=False,
        details={
            "sha256": made.sha256,
            "created": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "backupSequence": made.store_sequence,
            "storeSequence": sequence,
            "by": opened.by,
        },
    )


def _put(made: Path, place: Path) -> None:
    """Give the finished store its name, durably; raises SetupError when somebody else took it meanwhile."""
    if others := sorted(one.name for one in made.parent.iterdir() if one != made):
        raise SetupError(f"the store was not closed whole ({', '.join(others)} is beside it): try again")
    _sync(made)
    try:
        place.hardlink_to(made)
    except FileExistsError:
        raise SetupError(f"{place} was made by somebody else meanwhile, and was left alone") from None
    _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
