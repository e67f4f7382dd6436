"""What the audit trail costs an operation, by what `audit.sync` waits for."""

from pathlib import Path

from kmsd.audit.writer import SyncMode
from tests.benchmarks.daemon import running_daemon
from tests.benchmarks.load import CONNECTIONS, PIPELINED, depth_one, pipelined
from tests.benchmarks.report import Row, median


def audit_rows(folder: Path, cores: list[int], *, count: int, seconds: float) -> list[Row]:
    """Measure each mode with a daemon of its own; `os` waits for nothing and is what the others compare with."""
    rows = []
    for mode in (SyncMode.OS, SyncMode.INTERVAL, SyncMode.ALWAYS):
        with running_daemon(folder / f"audit-{mode}", f'[audit]\nsync = "{mode}"') as daemon:
            daemon.pin({cores[0]})
            encrypted, _ = depth_one(daemon, count=count, client_core=cores[0])
            rate = pipelined(daemon, seconds=seconds, client_core=cores[-1])
        rows += [
            Row(f"Encrypt, depth 1, one core, audit.sync = {mode}, p50", median(encrypted) * 1e6, "us"),
            Row(f"Encrypt, {CONNECTIONS} x {PIPELINED}, audit.sync = {mode}", rate, "/s"),
        ]
    return rows
