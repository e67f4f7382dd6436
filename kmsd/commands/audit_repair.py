"""`kmsd audit-repair`: begin a new chain where the audit trail is broken. The broken file is kept."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.repairing import Repairs
from kmsd.audit.succession import AuditBrokenError

_EXIT_FAILED = 1


def run_audit_repair(trail: Path, *, confirmed: bool) -> int:
    """Repair the trail at `trail`, asking first unless `confirmed`; return the exit code."""
    try:
        repairs = Repairs.open(trail, clock=time.time)
    except (AuditUnavailableError, AuditBrokenError) as error:
        return _fail(str(error))
    try:
        return _repair(repairs, trail, confirmed=confirmed)
    except (AuditUnavailableError, AuditBrokenError) as error:
        return _fail(str(error))
    finally:
        repairs.close()


def _repair(repairs: Repairs, trail: Path, *, confirmed: bool) -> int:
    fault = repairs.find()
    if fault is None:
        return _fail(f"{trail} is whole: there is nothing to repair")
    while fault is not None:
        print(f"found  {fault.what}")
        if not confirmed and not _agrees(fault.path):
            return _fail("nothing was changed")
        done = repairs.set_aside(fault)
        print(f"kept   {done.path}: {done.size} bytes, SHA-256 {done.sha256}")
        print(f"made   {trail}: a new chain that begins with record {done.first_seq}")
        if done.open_intents:
            print(f"       {done.open_intents} operations had no outcome yet: kmsd finds it out when it is unsealed")
        fault = repairs.find()
    print("Start kmsd. It will not unseal until an administrator accepts this: kms unseal --accept-changes")
    return 0


def _agrees(path: Path) -> bool:
    if not sys.stdin.isatty():
        sys.stderr.write("kmsd: error: nobody is there to be asked: give --yes\n")
        return False
    answer = input(f"Set {path} aside and begin a new chain? [y/N] ")
    return answer.strip().lower() in {"y", "yes"}


def _fail(reason: str) -> int:
    sys.stderr.write(f"kmsd: error: {reason}\n")
    return _EXIT_FAILED
