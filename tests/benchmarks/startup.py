"""How long whole processes take: what a person waits for."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.daemon import SCRIPTS, Daemon
from tests.benchmarks.report import Better, Row, median

# DESIGN 14.
SMALL_FILE_MILLISECONDS = 70
READY_SECONDS = 0.8
RESIDENT_MEBIBYTES = 96


def milliseconds(command: Sequence[str | Path], daemon: Daemon, *, count: int) -> float:
    """Return the median duration of a command."""
    samples = []
    for _ in range(count + 1):
        began = time.perf_counter()
        subprocess.run(command, env=daemon.environment, stdout=subprocess.DEVNULL, check=True)
        samples.append((time.perf_counter() - began) * 1e3)
    return median(samples[1:])  # the first one may still compile and read from the disk


def startup_rows(daemon: Daemon, folder: Path, *, count: int) -> list[Row]:
    """Measure commands from start to end, and the daemon's start and memory."""
    small = folder / "small"
    small.write_bytes(bytes(1024))
    encrypt: list[str | Path] = [
        SCRIPTS / "kms",
        "encrypt",
        "--force",
        "-k",
        daemon.key,
        "-o",
        folder / "small.kms",
        small,
    ]
    rows = [
        Row("python3 -c pass", milliseconds([sys.executable, "-c", "pass"], daemon, count=count), "ms"),
        Row("kms status", milliseconds([SCRIPTS / "kms", "status"], daemon, count=count), "ms"),
        Row(
            "kms encrypt, 1 KiB, with fsync",
            milliseconds(encrypt, daemon, count=count),
            "ms",
            SMALL_FILE_MILLISECONDS,
            Better.LOWER,
        ),
        Row("kmsd dev, start to ready, few keys", daemon.restart(), "s", READY_SECONDS, Better.LOWER),
    ]
    try:
        resident = daemon.resident_mebibytes()
    except PermissionError:
        return rows  # only root can ask
    return [*rows, Row("kmsd and its processes, idle, PSS", resident, "MiB", RESIDENT_MEBIBYTES, Better.LOWER)]
