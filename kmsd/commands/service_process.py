"""Work of `kmsd init` in a process that has become the service's user, as the daemon will be.

Whatever loads a PKCS#11 module, or makes what the daemon will own, is done there and not by root.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

import msgspec

from kmsd.commands.failures import failure_of
from kmsd.commands.steps import SetupError
from kmsd.processes.privileges import Account, become
from kmsd.processes.sandbox import die_with_parent, harden_process

# A message of a failure has a few hundred bytes.
_MOST_BYTES = 64 * 1024


class _Ended(msgspec.Struct):
    made: bool = False
    failure: str | None = None


def as_service(account: Account, work: Callable[[], bool]) -> bool:
    """Return what `work` returns in a process of its own; raises SetupError with the reason when it fails."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            # Ctrl-C ends the parent, and with it this process.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.write(writing, msgspec.json.encode(_outcome(account, work, parent)))
            code = 0
        finally:
            # Whatever happens, this process never returns into the code of the other.
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        told = stream.read(_MOST_BYTES)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) or not told:
        raise SetupError(f"a process as user {account.name} ended unexpectedly")
    ended = msgspec.json.decode(told, type=_Ended)
    if ended.failure is not None:
        raise SetupError(ended.failure)
    return ended.made


def _outcome(account: Account, work: Callable[[], bool], parent: int) -> _Ended:
    ended = _Ended()

    def run() -> None:
        os.chdir("/")
        os.umask(0o077)
        become(account)
        harden_process()
        # A set-up that is killed leaves nobody at work behind it. A change of user takes this back, so only now.
        die_with_parent(parent)
        ended.made = work()

    ended.failure = failure_of(run)
    return ended
