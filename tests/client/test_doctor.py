"""`kms doctor` says of each thing how it is and what to do: `kmsd_client.cli.doctor`."""

from __future__ import annotations

import datetime as dt
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import kmsd
from kmsd.api.administration import (
    BackupStatus,
    PinSetting,
    ProtectionStatus,
    RecoverySetting,
    SealState,
    StatusResponse,
    TokenStatus,
)
from kmsd.api.calendar import ClockState
from kmsd.api.errors import AccessDeniedError, KmsError
from kmsd_client.cli.main import main
from tests.client.scripted import ScriptedDaemon

TOKEN = TokenStatus(label="l", manufacturer="m", model="o", serial="s", firmware="1.2", mechanisms=["AES_GCM", "RSA"])
NOW = dt.datetime.now(dt.UTC)
BACKUP = BackupStatus(created=NOW - dt.timedelta(days=6), store_sequence=100, length=5000, sha256="ab" * 32)
WELL = StatusResponse(
    state=SealState.UNSEALED,
    version=kmsd.__version__,
    account="123456789012",
    region="local-host-1",
    started=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    secret_memory="memfd_secret",  # noqa: S106 - a kind of memory
    secret_memory_used_bytes=1024,
    secret_memory_limit_bytes=1024 * 1024,
    audit_sync="interval",
    audit_sequence=7,
    connections=1,
    file_streams=0,
    token=TOKEN,
    pin=PinSetting.CONFIGURED,
    store_sequence=1100,
    last_backup=BACKUP,
    hardening=[
        ProtectionStatus(process="daemon", protection="no swap", state="on", reason=""),
        ProtectionStatus(process="daemon", protection="no core file", state="on", reason=""),
    ],
)


@pytest.fixture
def daemon(short_path: Path) -> Iterator[ScriptedDaemon]:
    daemon = ScriptedDaemon(short_path / "s")
    yield daemon
    daemon.close()


def answer(daemon: ScriptedDaemon, status: StatusResponse | KmsError) -> None:
    def said(_name: str, _request: Any) -> tuple[StatusResponse, list[int]]:
        if isinstance(status, KmsError):
            raise status
        return status, []

    daemon.answer = said


def examined(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the findings."""
    code = main(["--socket", str(path), "doctor", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_all_is_well(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of the daemon's has a hint, and the exit code is 0."""
    answer(daemon, WELL)
    code, found = examined(daemon.path, capsys)

    of_daemon = [one for one in found if one["check"] not in {"group", "clock"}]
    assert code == 0
    assert {one["grade"] for one in of_daemon} == {"ok"}
    assert [one["check"] for one in of_daemon] == [
        *("socket", "version", "seal", "PIN", "token", "token", "memory", "swap", "hardening", "backup", "audit"),
    ]


@pytest.mark.parametrize(("grade", "said"), [("ok", "units get them from"), ("warn", "does not exist: units get none")])
def test_the_host_s_socket_for_credentials_is_looked_at(
    daemon: ScriptedDaemon,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    grade: str,
    said: str,
) -> None:
    """Where it is missing, services with credentials do not start."""
    monkeypatch.setattr("kmsd_client._transport.SYSTEM_SOCKET", str(daemon.path))
    if grade == "ok":
        daemon.path.with_name("credential.sock").touch()
    answer(daemon, WELL)

    code, found = examined(daemon.path, capsys)

    [finding] = [one for one in found if one["check"] == "credentials"]
    assert (code, finding["grade"]) == (0, grade)
    assert said in finding["text"]


@pytest.mark.parametrize(
    ("change", "check", "grade", "text", "hint"),
    [
        ({"state": SealState.SEALED}, "seal", "fail", "kmsd is sealed$", "kms unseal"),
        ({"state": SealState.SEALED, "unseal_failure": "why"}, "seal", "fail", "sealed: why", "kms unseal"),
        ({"version": "0.0.1"}, "version", "warn", "the daemon is 0.0.1", "restart"),
        ({"pin": PinSetting.NONE}, "PIN", "ok", "an administrator runs kms unseal", ""),
        ({"recovery": RecoverySetting.SHARES}, "recovery", "ok", "shares open the keys", ""),
        ({"recovery": RecoverySetting.NONE}, "recovery", "warn", "lost with the token", "backups of the token"),
        ({"token": None}, "token", "fail", "not seen", "hsm.module"),
        ({"token": msgspec.structs.replace(TOKEN, mechanisms=["RSA"])}, "token", "fail", "not offer AES-GCM", "enable"),
        ({"secret_memory": "memfd_create+mlock"}, "memory", "warn", "root can read it", "secretmem.enable=1"),
        ({"secret_memory_used_bytes": 1_000_000}, "memory", "warn", "976 of 1024 KiB", "LimitMEMLOCK"),
        (
            {"hardening": [ProtectionStatus(process="zygote", protection="no swap", state="off", reason="eh")]},
            "swap",
            "warn",
            r"zygote: no swap is off \(eh\)",
            "MemorySwapMax=0",
        ),
        (
            {"hardening": [ProtectionStatus(process="worker", protection="no core file", state="off", reason="")]},
            "hardening",
            "warn",
            "worker: no core file is off$",
            "CONFINEMENT.md",
        ),
        ({"last_backup": None}, "backup", "warn", "there is none", "kmsd backup FILE"),
        ({"last_backup": None, "state": SealState.SEALED}, "seal", "fail", "", "kms unseal"),
        ({"store_sequence": 1101}, "backup", "warn", "1001 changes ago", "kmsd backup FILE"),
        (
            {"last_backup": msgspec.structs.replace(BACKUP, created=NOW - dt.timedelta(days=8))},
            "backup",
            "warn",
            "UTC, 1000 changes ago$",
            "kmsd backup FILE",
        ),
        ({"clock": ClockState.TRUSTED}, "clock", "ok", "kmsd believes it", ""),
        ({"clock": ClockState.AHEAD}, "clock", "warn", "in doubt: it is ahead of", "kms clock"),
        ({"clock": ClockState.BEHIND}, "clock", "warn", "in doubt: it is behind", "kms clock"),
    ],
)
def test_what_is_not_well_is_told(
    daemon: ScriptedDaemon,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    check: str,
    grade: str,
    text: str,
    hint: str,
) -> None:
    """With what to do; only a failure makes the exit code 1."""
    answer(daemon, msgspec.structs.replace(WELL, **change))
    code, found = examined(daemon.path, capsys)

    assert code == (grade == "fail")
    [told] = [one for one in found if one["check"] == check and re.search(text, one["text"])]
    assert told["grade"] == grade
    assert hint in (told["hint"] or "")


def test_a_status_that_is_refused_is_a_failure(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """What the daemon says is passed on."""
    answer(daemon, AccessDeniedError("not you"))
    code, found = examined(daemon.path, capsys)

    assert code == 1
    assert found[-1]["text"] == "AccessDeniedException: not you"


def test_without_a_daemon_the_rest_is_examined(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A socket nobody serves, and none at all."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(short_path / "left"))
    for name, text in (("left", "Connection refused"), ("none", "does not exist")):
        code, found = examined(short_path / name, capsys)
        assert code == 1
        assert text in found[0]["text"]
        assert {one["check"] for one in found} == {"socket", "group", "clock"}
