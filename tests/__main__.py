"""Runs the suite on two cores, as two runs of pytest at a time, each of which has its own report; `make test`.

No plugin does: one that hands out tests has threads, beside which kmsd's processes refuse to be forked.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
# Those with whole daemons, hosts and campaigns, which take as long as all others together.
FIRST = [str(TESTS / name) for name in ("e2e", "faults", "systemd")]

_PYTEST = [sys.executable, "-m", "pytest"]


def main() -> int:
    """Run everything; with arguments for pytest, run that once, with those."""
    if arguments := sys.argv[1:]:
        return subprocess.run([*_PYTEST, *arguments], check=False).returncode
    with tempfile.TemporaryFile() as report:
        others = subprocess.Popen(
            [*_PYTEST, str(TESTS), *(f"--ignore={folder}" for folder in FIRST)],
            stdin=subprocess.DEVNULL,
            stdout=report,
            stderr=subprocess.STDOUT,
        )
        try:
            first = subprocess.run([*_PYTEST, *FIRST], check=False)
            others.wait()
        finally:
            others.terminate()
            others.wait()
        report.seek(0)
        sys.stdout.buffer.write(report.read())
    return int(first.returncode != 0 or others.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
