"""A store with very many keys: how long the daemon takes to start on it, and what memory that takes.

`python -m tests.benchmarks.many_keys FOLDER COUNT` adds keys to the store of a stopped `kmsd dev FOLDER`, in
transactions of many: as requests they would take minutes, most of it for syncing each of them.
"""

import asyncio
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from kmsd.config import Config
from kmsd.hsm.pkcs11 import JOB_ENTRY, Pkcs11Root, run_job
from kmsd.identity.principals import Administrators
from kmsd.logs import StructuredLogger
from kmsd.material.versions import Versions
from kmsd.memory.arena import Arena, default_limit_bytes
from kmsd.processes.zygote import Zygote
from kmsd.server.assembly import Service
from kmsd.server.deployment import Deployment, development
from kmsd.server.foundation import Foundation
from kmsd.store.base import AliasRow, Change, Insert, KeyRow
from tests.benchmarks.daemon import Daemon
from tests.benchmarks.report import Better, Row
from tests.benchmarks.startup import READY_SECONDS
from tests.support.at_once import Processes, directory_of

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


async def add_keys(deployment: Deployment, zygote: Zygote, count: int) -> None:
    """Add keys, each with its material and an alias."""
    token = await deployment.find_token(zygote)
    arena = Arena(default_limit_bytes(), allow_fallback=True)
    service = await Service.open(
        Foundation(
            config=deployment.config,
            zygote=zygote,
            arena=arena,
            logger=StructuredLogger(),
            root=Pkcs11Root(zygote, token.config, token.pin),
            pin_configured=True,
            administrators=Administrators(uids=frozenset({os.getuid()}), groups=()),
            admit=lambda _peer: None,
            directory=directory_of(),
            processes=Processes(),
            findings=(),
            host_policy=None,
            store_path=deployment.store_path,
            audit_path=deployment.audit_path,
            founds=True,
            log_is_kept=False,
        )
    )
    await service.unseal()
    store, hierarchy = service._store, service._custody.hierarchy
    versions = Versions(arena, hierarchy, store, capacity=1)
    [pattern] = await store.keys(after=None, limit=1)
    for start in range(0, count, KEYS_IN_A_COMMIT):
        changes: list[Change] = []
        for number in range(start, min(start + KEYS_IN_A_COMMIT, count)):
            changes += _key(pattern, versions, number)
        await store.commit(str(uuid.uuid4()), changes)
    await service.close()


def _key(pattern: KeyRow, versions: Versions, number: int) -> list[Change]:
    from msgspec.structs import replace

    key_id, now_ms = str(uuid.uuid4()), int(time.time() * 1000)
    material = versions.create(key_id, 1, pattern.key_spec, _MATERIAL_BYTES, now_ms)
    alias = AliasRow(name=f"alias/many/{number}", key_id=key_id, creation_ms=now_ms, updated_ms=now_ms, version=1)
    return [Insert(replace(pattern, key_id=key_id, version=1)), Insert(material), Insert(alias)]


def main() -> None:
    """Add the keys."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    zygote = Zygote.start({JOB_ENTRY: run_job})
    deployment = development(folder, Config(), shared=False, only_uid=None, ready=lambda: None)

    async def run() -> None:
        try:
            await add_keys(deployment, zygote, count)
        finally:
            await zygote.close()

    asyncio.run(run())


if __name__ == "__main__":
    main()
