"""`python -m tests.support.probed_daemon KIND DIR`: kmsd dev, in which one kind of process tries what it must not.

The product has no hook for this. This program replaces a function of its own copy before the daemon is made; the
zygote's children are forks of it.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import NoReturn

from kmsd.api.errors import FileAccessError
from kmsd.config import Config
from kmsd.envelope import worker
from kmsd.hsm import job
from kmsd.hsm.root import RootError, TokenFailedError
from kmsd.server.daemon import run_daemon
from kmsd.server.deployment import development
from tests.support import probes


def _in_worker(work: worker._Work, *_: object) -> NoReturn:
    work._receive_start()  # else the client would find its peer gone while it still speaks
    raise FileAccessError(probes.report())


def _in_job(*_: object) -> NoReturn:
    raise TokenFailedError(probes.report())


def _in_daemon() -> None:
    sys.stderr.write(f"probed: {probes.report()}\n")
    # The restrictions are on every thread, whenever it was started.
    late = threading.Thread(target=lambda: sys.stderr.write(f"probed: {probes.report()}\n"))
    late.start()
    late.join()


def main(kind: str, directory: Path) -> None:
    if kind == "worker":
        worker._Work.run = _in_worker  # type: ignore[method-assign, assignment] # the probe is inside
    if kind == "job":
        job._perform = _in_job  # type: ignore[assignment] # the probe is inside

    def ready() -> None:
        if kind == "daemon":
            _in_daemon()
        sys.stderr.write("kmsd: ready:\n")

    directory.mkdir(mode=0o700, exist_ok=True)
    try:
        run_daemon(development(directory, Config(), shared=False, only_uid=None, ready=ready))
    except RootError as error:
        sys.stderr.write(f"probed: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
