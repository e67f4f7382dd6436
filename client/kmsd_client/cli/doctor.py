"""Check the installation from here to the token: each line is ok, warn or fail, with what to do."""

from __future__ import annotations

import argparse
import datetime as dt
import enum
import grp
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import kmsd
from kmsd.api.administration import (
    STATUS,
    PinSetting,
    ProtectionStatus,
    RecoverySetting,
    SealState,
    StatusRequest,
    StatusResponse,
)
from kmsd.api.calendar import ClockState
from kmsd.api.errors import ConnectionLostError, KmsError, UntrustedServerError
from kmsd_client import Client, _transport
from kmsd_client.cli.clock import CLOCK_STATES
from kmsd_client.cli.terminal import EXIT_ERROR, add_json_option, print_json, printable

# The groups that the shipped host policy names (DESIGN 6).
_GROUPS = {"kms-admin": "administers kmsd", "kms-users": "may create keys", "kms-auditors": "may read the audit trail"}
# What time services leave when they have set the clock: systemd-timesyncd, chrony, ntpd.
_CLOCK_SET = ("/run/systemd/timesync/synchronized", "/run/chrony/chronyd.pid", "/run/ntpd.pid")
# The root key wraps with it.
_WRAPPING = "AES_GCM"
_BEST_MEMORY = "memfd_secret"
# Above this share the next keys may push others out of memory.
_MEMORY_FULL = 0.9

# A week of work is what a lost disk may cost on a host that is backed up weekly; where much is changed, less.
_OLD_BACKUP = dt.timedelta(days=7)
_MANY_COMMITS = 1000


class Grade(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """What a check found; `hint` says what to do about it."""

    check: str
    grade: Grade
    text: str
    hint: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print all findings; the exit code is 0 only when nothing failed."""
    found = list(_examine(options.socket))
    if options.json:
        print_json([one._asdict() for one in found])
    else:
        width = max(len(one.check) for one in found) + 2
        for one in found:
            print(f"{one.grade:<6}{one.check:<{width}}{printable(one.text)}")
            if one.hint:
                print(f"{'':<{width + 6}}-> {printable(one.hint)}")
    return EXIT_ERROR if any(one.grade is Grade.FAIL for one in found) else 0


def _examine(given: str | None) -> Iterator[Finding]:
    path = _transport.find_socket(given, os.environ)
    reached = _socket(path)
    yield reached
    yield from _credentials(path)
    yield from _groups()
    yield _clock()
    if reached.grade is not Grade.OK:
        return
    try:
        with Client(path) as client:
            status = client.call(STATUS, StatusRequest())
    except KmsError as error:
        yield Finding("status", Grade.FAIL, f"{error.code}: {error.message}", "look into kmsd's log")
        return
    yield from _status(status)


def _socket(path: str) -> Finding:
    if not Path(path).exists():
        return Finding(
            "socket",
            Grade.FAIL,
            f"{path} does not exist",
            "start kmsd (systemctl start kmsd.socket), or name its socket with --socket or KMSD_SOCKET",
        )
    try:
        with _transport.connect(path, timeout_seconds=_transport.DEFAULT_TIMEOUT_SECONDS) as sock:
            uid = _transport.server_uid(sock)
    except UntrustedServerError as error:
        return Finding("socket", Grade.FAIL, error.message, "use no keys until an administrator knows who that is")
    except ConnectionLostError as error:
        return Finding("socket", Grade.FAIL, error.message, "is kmsd running? (systemctl status kmsd.service)")
    return Finding("socket", Grade.OK, f"{path} is served by {_user(uid)}")


def _credentials(path: str) -> Iterator[Finding]:
    if path != _transport.SYSTEM_SOCKET:
        return  # others may do without
    beside = Path(path).with_name("credential.sock")
    if beside.exists():
        yield Finding("credentials", Grade.OK, f"units get them from {beside}")
    else:
        yield Finding(
            "credentials",
            Grade.WARN,
            f"{beside} does not exist: units get none",
            "unless that is wanted: systemctl unmask kmsd-credential.socket, systemctl start kmsd-credential.socket",
        )


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _groups() -> Iterator[Finding]:
    own = {os.getegid(), *os.getgroups()}
    for name, meaning in _GROUPS.items():
        try:
            gid = grp.getgrnam(name).gr_gid
        except KeyError:
            yield Finding(
                "group", Grade.WARN, f"there is no group {name}, which {meaning}", f"as root: groupadd --system {name}"
            )
        else:
            place = "in it" if gid in own else "not in it"
            yield Finding("group", Grade.OK, f"{name} ({meaning}) exists; you are {place}")


def _clock() -> Finding:
    if any(Path(path).exists() for path in _CLOCK_SET):
        return Finding("clock", Grade.OK, "a time service sets it")
    return Finding(
        "clock",
        Grade.WARN,
        "nothing shows that a time service sets it",
        "enable one (systemd-timesyncd, chrony): the audit trail and the rotation of keys go by the clock",
    )


def _belief(state: ClockState | None) -> Iterator[Finding]:
    if state is ClockState.TRUSTED:
        yield Finding("clock", Grade.OK, "kmsd believes it")
    elif state is not None:
        hint = "as an administrator: kms clock; what the clock makes due waits until it is set right, or confirmed"
        yield Finding("clock", Grade.WARN, f"kmsd has it {CLOCK_STATES[state]}", hint)


def _status(status: StatusResponse) -> Iterator[Finding]:
    yield _versions(status)
    yield _seal(status)
    yield _pin(status)
    yield from _token(status)
    yield from _recovery(status)
    yield _memory(status)
    yield from _hardening(status.hardening)
    yield _backup(status, dt.datetime.now(dt.UTC))
    yield from _belief(status.clock)
    yield Finding(
        "audit", Grade.OK, f"the trail takes records ({status.audit_sequence} so far, sync {status.audit_sync})"
    )


def _versions(status: StatusResponse) -> Finding:
    if status.version == kmsd.__version__:
        return Finding("version", Grade.OK, f"daemon and client are {status.version}")
    return Finding(
        "version",
        Grade.WARN,
        f"the daemon is {status.version}, this client {kmsd.__version__}",
        "restart kmsd after an upgrade, or upgrade the client",
    )


def _seal(status: StatusResponse) -> Finding:
    if status.state is SealState.UNSEALED:
        return Finding("seal", Grade.OK, "kmsd is unsealed")
    reason = f": {status.unseal_failure}" if status.unseal_failure else ""
    return Finding("seal", Grade.FAIL, f"kmsd is sealed{reason}", "an administrator has to run kms unseal")


def _pin(status: StatusResponse) -> Finding:
    if status.pin is PinSetting.CONFIGURED:
        return Finding("PIN", Grade.OK, "kmsd has a source of it and unseals itself after a restart")
    return Finding("PIN", Grade.OK, "none is configured: after a restart an administrator runs kms unseal")


def _token(status: StatusResponse) -> Iterator[Finding]:
    token = status.token
    if token is None:
        yield Finding(
            "token", Grade.FAIL, "it was not seen yet", "check hsm.module and hsm.token_label, and connect it"
        )
        return
    about = f"{token.label}: {token.manufacturer} {token.model}, firmware {token.firmware}, serial {token.serial}"
    yield Finding("token", Grade.OK, about)
    if not token.mechanisms:
        return
    if _WRAPPING in token.mechanisms:
        yield Finding("token", Grade.OK, f"offers AES-GCM ({len(token.mechanisms)} mechanisms)")
    else:
        yield Finding(
            "token", Grade.FAIL, "does not offer AES-GCM", "use one that does, or enable it in the module's settings"
        )


def _recovery(status: StatusResponse) -> Iterator[Finding]:
    if status.recovery is RecoverySetting.SHARES:
        yield Finding("recovery", Grade.OK, "shares open the keys without the token")
    elif status.recovery is RecoverySetting.NONE:
        yield Finding(
            "recovery",
            Grade.WARN,
            "there are no recovery shares: the keys are lost with the token",
            "keep backups of the token and of its PIN; shares are made by kmsd init, with the store",
        )


def _memory(status: StatusResponse) -> Finding:
    used, limit = status.secret_memory_used_bytes, status.secret_memory_limit_bytes
    told = f"{status.secret_memory}, {used // 1024} of {limit // 1024} KiB used"
    if status.secret_memory != _BEST_MEMORY:
        return Finding(
            "memory",
            Grade.WARN,
            f"{told}: locked, but root can read it",
            "use Linux 6.5 or newer, or boot with secretmem.enable=1",
        )
    if used > limit * _MEMORY_FULL:
        return Finding("memory", Grade.WARN, told, "raise LimitMEMLOCK= of the unit and memory.limit_bytes")
    return Finding("memory", Grade.OK, told)


def _backup(status: StatusResponse, now: dt.datetime) -> Finding:
    last, hint = status.last_backup, "as an administrator: kmsd backup FILE, and keep the file on another machine"
    if last is None:
        if status.state is SealState.SEALED:
            return Finding(
                "backup", Grade.WARN, "while kmsd is sealed nobody can tell when the last one was made", None
            )
        return Finding("backup", Grade.WARN, "there is none: a lost disk is the loss of all keys", hint)
    behind = status.store_sequence - last.store_sequence
    told = f"the last one was made at {last.created:%Y-%m-%d %H:%M:%S} UTC, {behind} changes ago"
    if now - last.created > _OLD_BACKUP or behind > _MANY_COMMITS:
        return Finding("backup", Grade.WARN, told, hint)
    return Finding("backup", Grade.OK, told)


def _hardening(found: list[ProtectionStatus]) -> Iterator[Finding]:
    swap = [one for one in found if one.protection == "no swap"]
    others = [one for one in found if one.protection not in {"no swap", "secret memory"}]
    for check, group, hint in (
        ("swap", swap, "set MemorySwapMax=0 in the unit, or swapoff -a"),
        ("hardening", others, "kmsd's CONFINEMENT.md tells what each protection needs"),
    ):
        missing = [one for one in group if one.state != "on"]
        if group and not missing:
            yield Finding(check, Grade.OK, f"{len(group)} of {len(group)} protections are on")
        for one in missing:
            reason = f" ({one.reason})" if one.reason else ""
            yield Finding(check, Grade.WARN, f"{one.process}: {one.protection} is {one.state}{reason}", hint)
