"""A store with very many keys: how long the daemon takes to start on it, and what memory that takes.

`python -m tests.benchmarks.many_keys FOLDER COUNT` adds keys to the store of a stopped `kmsd dev FOLDER`, in
transactions of many: as requests they would take minutes, most of it for syncing each of them.
"""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from kmsd.material.versions import Versions
from kmsd.server.assembly import Service
from kmsd.store.base import Change, Insert
from kmsd.store.rows import AliasRow, KeyRow
from tests.benchmarks.daemon import Daemon
from tests.benchmarks.offline import with_service
from tests.benchmarks.report import Better, Row
from tests.benchmarks.startup import READY_SECONDS

# DESIGN 14.
MORE_RESIDENT_MEBIBYTES = 8

KEYS_IN_A_COMMIT = 1000
_MATERIAL_BYTES = 32


def many_keys_rows(daemon: Daemon, folder: Path, *, count: int) -> list[Row]:
    """Measure a start with few keys, and one with `count` more."""
    before = daemon.resident_mebibytes() if os.getuid() == 0 else None
    daemon.close()
    subprocess.run([sys.executable, "-m", "tests.benchmarks.many_keys", folder, str(count)], check=True)
    rows = [
        Row(f"kmsd dev, start to ready, {count:,} keys", daemon.restart(), "s", READY_SECONDS, Better.LOWER),
    ]
    if before is not None:  # only root can ask
        what = f"kmsd and its processes, idle, PSS, {count:,} keys"
        rows.append(Row(what, daemon.resident_mebibytes(), "MiB", before + MORE_RESIDENT_MEBIBYTES, Better.LOWER))
    return rows


async def add_keys(service: Service, count: int) -> None:
    """Add keys, each with its material and an alias."""
    store = service._store
    versions = Versions(service._foundation.arena, service._custody.hierarchy, store, capacity=1)
    [pattern] = await store.keys(after=None, limit=1)
    for start in range(0, count, KEYS_IN_A_COMMIT):
        changes: list[Change] = []
        for number in range(start, min(start + KEYS_IN_A_COMMIT, count)):
            changes += _key(pattern, versions, number)
        await store.commit(str(uuid.uuid4()), changes)


def _key(pattern: KeyRow, versions: Versions, number: int) -> list[Change]:
    from msgspec.structs import replace

    key_id, now_ms = str(uuid.uuid4()), int(time.time() * 1000)
    material = versions.create(key_id, 1, pattern.key_spec, _MATERIAL_BYTES, now_ms)
    alias = AliasRow(name=f"alias/many/{number}", key_id=key_id, creation_ms=now_ms, updated_ms=now_ms, version=1)
    return [Insert(replace(pattern, key_id=key_id, version=1)), Insert(material), Insert(alias)]


def main() -> None:
    """Add the keys."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    with_service(folder, lambda service: add_keys(service, count))


if __name__ == "__main__":
    main()
