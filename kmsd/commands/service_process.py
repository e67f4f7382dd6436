"""Work of `kmsd init` in processes of their own.

Whatever loads a PKCS#11 module, or makes what the daemon will own, is done in one that has become the service's user,
as the daemon will be, and not by root. What has secrets as ordinary objects is done in one that ends with it.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial

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
    """Return what `work` returns in a process of the service's user; raises SetupError with the reason it fails for."""
    return _run_apart(f"user {account.name}", partial(become, account), work)


def apart(work: Callable[[], None]) -> None:
    """Call `work` in a process of its own; raises SetupError with the reason it fails for."""

    def done() -> bool:
        work()
        return True

    _run_apart("before", lambda: None, done)


def _run_apart(who: str, become_it: Callable[[], None], work: Callable[[], bool]) -> bool:
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
            os.write(writing, msgspec.json.encode(_outcome(become_it, work, parent)))
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
        raise SetupError(f"a process as {who} ended unexpectedly")
    ended = msgspec.json.decode(told, type=_Ended)
    if ended.failure is not None:
        raise SetupError(ended.failure)
    return ended.made


def _outcome(become_it: Callable[[], None], work: Callable[[], bool], parent: int) -> _Ended:
    ended = _Ended()

    def run() -> None:
        os.chdir("/")
        os.umask(0o077)
        become_it()
        harden_process()
        # A set-up that is killed leaves nobody at work behind it. A change of user takes this back, so only now.
        die_with_parent(parent)
        ended.made = work()

    ended.failure = failure_of(run)
    return ended
