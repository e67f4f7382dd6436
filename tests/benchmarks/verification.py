"""How fast a trail is verified off-line."""

import time
from pathlib import Path

from kmsd.audit.chain import GENESIS, link
from kmsd.audit.trail_check import check_trail
from kmsd_client.cli.audit_records import trail_file
from tests.benchmarks.report import Row, median
from tests.support.written_trail import request

# What was asked for of one core.
VERIFY_LINES = 200_000
_ROUNDS = 3


def verification_rows(folder: Path, *, lines: int) -> list[Row]:
    """Measure a file of so many lines of ordinary requests, in the page cache, on one core."""
    path = folder / "trail"
    written, _ = link(GENESIS, (request(number) for number in range(lines)), "2026-09-21T14:13:20.125Z")
    path.write_bytes(b"".join(written))

    rates = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        check_trail([trail_file(path)])
        rates.append(lines / (time.perf_counter() - began))
    length = path.stat().st_size // lines
    path.unlink()
    return [Row(f"verify, lines/s, of {length} bytes", median(rates), "/s", VERIFY_LINES)]
