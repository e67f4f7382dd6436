"""`make bench`: what kmsd reaches here, side by side with its peers in one run.

Figures of different runs or machines compare badly, ratios within a run compare well: the last column says how a figure
stands to its target, which for most rows comes from a peer of the same run (DESIGN 14).
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path

from tests.benchmarks.audit_modes import audit_rows
from tests.benchmarks.daemon import RAISED_LIMITS, running_daemon
from tests.benchmarks.files import make_source, missing_peers, race
from tests.benchmarks.load import depth_one_rows, pipelined_rows
from tests.benchmarks.many_grants import many_grants_rows
from tests.benchmarks.many_keys import many_keys_rows
from tests.benchmarks.report import print_table
from tests.benchmarks.startup import startup_rows
from tests.benchmarks.verification import verification_rows


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=None, help="where files are made (default: the system's for temporary files)"
    )
    parser.add_argument("--file-mebibytes", type=int, default=1024, help="size of the file (default: 1024)")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each contestant takes (default: 3)")
    parser.add_argument("--requests", type=int, default=20_000, help="requests at depth 1 (default: 20000)")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each pipelined run (default: 3)")
    parser.add_argument("--streams", type=int, default=2, help="file streams beside the pipelined run (default: 2)")
    parser.add_argument("--keys", type=int, default=100_000, help="keys of the large store (default: 100000)")
    parser.add_argument("--grants", type=int, default=50_000, help="grants of one key (default: 50000)")
    parser.add_argument("--lines", type=int, default=200_000, help="lines of the trail to verify (default: 200000)")
    parser.add_argument("--commands", type=int, default=15, help="runs of each command (default: 15)")
    return parser.parse_args()


def main() -> None:
    """Run everything and print a table for each part."""
    chosen = arguments()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="kmsd-bench-", dir=chosen.folder) as name:
        folder = Path(name)
        with running_daemon(folder / "kmsd") as daemon:
            status = daemon.status()
            host = f"Python {platform.python_version()}, Linux {platform.release()}, {len(cores)} cores"
            print(f"kmsd {status.version}, {host}")
            print(f"audit.sync = {status.audit_sync}; keys in {status.secret_memory}; files in {folder.parent}")
            print("limits raised: " + ", ".join(f"{name} = {value:,}" for name, value in RAISED_LIMITS.items()))
            source = folder / "source"
            make_source(source, chosen.file_mebibytes << 20)
            print_table(
                "Requests, 64 bytes of plaintext", depth_one_rows(daemon, cores, count=chosen.requests, folder=folder)
            )
            rows = pipelined_rows(daemon, cores, seconds=chosen.seconds, source=source, streams=chosen.streams)
            print_table("Requests, pipelined, the daemon on one core", rows)
            rows = many_grants_rows(
                daemon, folder / "kmsd", count=chosen.grants, requests=chosen.requests // 2, core=cores[0]
            )
            print_table("Grants", rows)
            daemon.pin(set(cores))
            rows = startup_rows(daemon, folder, count=chosen.commands)
            print_table("Processes", [*rows, *many_keys_rows(daemon, folder / "kmsd", count=chosen.keys)])
            rows = audit_rows(folder, cores, count=chosen.requests // 10, seconds=chosen.seconds)
            print_table("The audit trail", [*rows, *verification_rows(folder, lines=chosen.lines)])
            rows = race(daemon, folder, source, rounds=chosen.rounds)
            notes = [f"{peer} is not installed" for peer in missing_peers()]
            print_table(
                f"A file of {chosen.file_mebibytes} MiB in the page cache, median of {chosen.rounds}", rows, notes
            )


if __name__ == "__main__":
    main()
