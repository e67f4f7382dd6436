"""Runs a campaign in a process that has `faulty_disk.c` preloaded: see `--help`, and `launch` for how tests do it.

The process has no threads, imports everything once, and forks a child for each run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tests.faults.kills import kills
from tests.faults.outages import outages
from tests.faults.place import Share
from tests.faults.power import power_cuts
from tests.support.faulty_disk import FaultyDisk

ROOT = Path(__file__).parent.parent.parent

# What each campaign yields after each of its runs says nothing: it raises when something is wrong. What there are only
# so many of is shared by the processes.
CAMPAIGNS: dict[str, Callable[[FaultyDisk, Path, random.Random, Share], Iterator[Any]]] = {
    "kills": kills,
    "outages": outages,
    "power": lambda disk, directory, rng, _: power_cuts(disk, directory, rng),
}

_PROGRESS_SECONDS = 10.0


def launch(shim: Path, name: str, *, runs: int, seconds: float, seed: int) -> int:
    """Run a campaign on all cores, and return how many runs it made within the time.

    Raises AssertionError with everything that the processes said when one of them found a fault.
    """
    processes = os.cpu_count() or 1
    command = [sys.executable, "-m", __spec__.name, name, "--runs", str(runs), "--seconds", str(seconds)]
    command += ["--seed", str(seed), "--processes", str(processes)]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONDONTWRITEBYTECODE": "1"}
    children = [
        subprocess.Popen(
            [*command, "--process", str(number)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        for number in range(processes)
    ]
    said = [child.communicate()[0] for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(said)
    return sum(int(one.split()[-1]) for one in said)


def main() -> int:
    """Run one campaign; exit code 1 when something was wrong, and then its directory is kept."""
    parser = argparse.ArgumentParser(prog=f"LD_PRELOAD=faulty_disk.so python -m {__spec__.name}")
    parser.add_argument("campaign", choices=sorted(CAMPAIGNS))
    parser.add_argument("--runs", type=int, required=True, help="how many at most, in all processes")
    parser.add_argument("--seconds", type=float, required=True, help="begin none after so long")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--process", type=int, default=0, help="which of the processes this is, from 0")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    share = Share(arguments.process, arguments.processes)
    runs = len(share.of(range(arguments.runs)))
    directory = Path(tempfile.mkdtemp(prefix="kmsd-"))
    rng = random.Random(f"{arguments.seed} {arguments.process}")
    campaign = CAMPAIGNS[arguments.campaign](FaultyDisk(), directory / "d", rng, share)
    began = told = time.monotonic()
    done = 0
    try:
        for done, _ in enumerate(islice(campaign, runs), 1):
            now = time.monotonic()
            if now - told > _PROGRESS_SECONDS:
                told = now
                print(f"{arguments.campaign}: {done} of {runs} runs, {now - began:.0f} s", file=sys.stderr)
            if now - began > arguments.seconds:
                break
    except BaseException:
        print(f"{arguments.campaign}, seed {arguments.seed}, run {done + 1}; its files are in {directory}", flush=True)
        raise
    shutil.rmtree(directory)
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
