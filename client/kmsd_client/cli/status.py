"""Tell how the daemon is: sealed or not, its memory, its token, its audit trail."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

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
from kmsd_client import Client
from kmsd_client.cli.clock import CLOCK_STATES
from kmsd_client.cli.terminal import EXIT_ERROR, add_json_option, print_facts, print_json

_RECOVERY = {
    RecoverySetting.SHARES: "shares open the keys without the token",
    RecoverySetting.NONE: "none: the keys are lost with the token",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the status; the exit code is 0 only when the daemon is unsealed."""
    with Client(options.socket) as client:
        status = client.call(STATUS, StatusRequest())
    if options.json:
        print_json(status)
    else:
        token = status.token
        used, limit = status.secret_memory_used_bytes // 1024, status.secret_memory_limit_bytes // 1024
        print_facts(
            [
                ("state", status.state),
                ("version", status.version),
                ("account", f"{status.account}, region {status.region}"),
                ("started", f"{status.started:%Y-%m-%d %H:%M:%S} UTC"),
                ("secret memory", f"{status.secret_memory}, {used} of {limit} KiB used"),
                ("audit trail", f"{status.audit_sequence} records, sync {status.audit_sync}"),
                ("last backup", _backup(status)),
                ("clock", _clock(status.clock)),
                ("in use", f"{status.connections} connections, {status.file_streams} file streams"),
                ("hardening", _hardening(status.hardening)),
                ("token", f"{token.label} ({token.manufacturer} {token.model})" if token else "not seen"),
                ("PIN", "configured" if status.pin is PinSetting.CONFIGURED else "an administrator brings it"),
                *([("recovery", _RECOVERY[status.recovery])] if status.recovery else []),
                *([("sealed because", status.unseal_failure)] if status.unseal_failure else []),
            ]
        )
    return 0 if status.state is SealState.UNSEALED else EXIT_ERROR


def _clock(state: ClockState | None) -> str:
    return "unknown before the first unsealing" if state is None else CLOCK_STATES[state]


def _backup(status: StatusResponse) -> str:
    last = status.last_backup
    if last is None:
        return "unknown while sealed" if status.state is SealState.SEALED else "never"
    behind = status.store_sequence - last.store_sequence
    return f"{last.created:%Y-%m-%d %H:%M:%S} UTC, {behind} changes ago"


def _hardening(found: Sequence[ProtectionStatus]) -> str:
    missing = [f"{one.process}: {one.protection} ({one.state})" for one in found if one.state != "on"]
    if not missing:
        return "all protections are on"
    return f"{len(found) - len(missing)} of {len(found)} protections are on; missing: {', '.join(missing)}"
