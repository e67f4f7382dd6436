"""The configuration file: what is understood is used, and everything else is an error that says where."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmsd.audit.retention import Retention
from kmsd.audit.rotation import Rotation
from kmsd.audit.writer import CHECKPOINT_EVERY_RECORDS, SyncMode
from kmsd.config import Audit, Config, ConfigurationError, Hsm, Limits, Memory, load_config


def load(folder: Path, text: str) -> Config:
    path = folder / "kmsd.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """Every setting has one (DESIGN 13)."""
    config = load(tmp_path, "")

    assert config == Config()
    limits = config.limits
    assert (limits.connections, limits.connections_per_uid, limits.requests_in_flight_per_uid) == (1024, 64, 256)
    assert (limits.requests_per_second_per_uid, limits.file_streams_per_uid, limits.keys_per_uid) == (20_000, 4, 1000)
    assert config.audit.sync == "interval"


def test_the_defaults_are_valid() -> None:
    """They would be accepted from a file."""
    assert msgspec.convert(msgspec.to_builtins(Config()), Config) == Config()


def test_settings_are_read_by_section(tmp_path: Path) -> None:
    """Whole numbers are taken for seconds too."""
    config = load(
        tmp_path,
        """
        region = "eu-lab-2"
        shutdown_grace_seconds = 3
        [limits]
        connections = 7
        [memory]
        limit_bytes = 65536
        allow_fallback = false
        [audit]
        sync = "always"
        [hsm]
        deadline_seconds = 1.5
        """,
    )

    assert config == Config(
        region="eu-lab-2",
        shutdown_grace_seconds=3.0,
        limits=Limits(connections=7),
        memory=Memory(limit_bytes=65536, allow_fallback=False),
        audit=Audit(sync="always"),
        hsm=Hsm(deadline_seconds=1.5),
    )


def test_the_trail_is_kept_as_its_own_defaults_say() -> None:
    """Whoever opens a trail without settings gets what an empty file gives."""
    audit = Audit()

    assert Rotation() == Rotation(audit.rotate_bytes, audit.rotate_days * 86_400)
    assert Retention() == Retention(audit.keep_days * 86_400, audit.keep_bytes)
    assert audit.checkpoint_records == CHECKPOINT_EVERY_RECORDS


@pytest.mark.parametrize("mode", SyncMode)
def test_every_mode_of_the_trail_can_be_chosen(tmp_path: Path, mode: SyncMode) -> None:
    """The setting's values are the trail's own."""
    assert SyncMode(load(tmp_path, f'[audit]\nsync = "{mode}"').audit.sync) is mode


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("regoin = 'x'", "regoin"),
        ("[limits]\nconections = 1", "conections"),
        ("[limits]\nconnections = '1'", "connections"),
        ("[audit]\nrotate_bytes = -1", "rotate_bytes"),
        ("[audit]\ncheckpoint_records = 0", "checkpoint_records"),
        ("[audit]\nkeep_days = 100000", "keep_days"),
        ("[limits]\nconnections = 1.5", "connections"),
        ("[limits]\nconnections = true", "connections"),
        ("[limits]\nconnections = 0", "connections"),
        ("[limits]\nconnections = -1", "connections"),
        ("[limits]\nrequests_per_second_per_uid = 0", "requests_per_second_per_uid"),
        ("[limits]\nbytes_per_request_charge = 0", "bytes_per_request_charge"),
        ("[limits]\nkeys_in_memory = 0", "keys_in_memory"),
        ("[limits]\nfile_workers = -1", "file_workers"),
        ("[memory]\nlimit_bytes = -1", "limit_bytes"),
        ("[audit]\nsync = 'sometimes'", "sync"),
        ("[hsm]\ndeadline_seconds = 0", "deadline_seconds"),
        ("[hsm]\ndeadline_seconds = nan", "deadline_seconds"),
        ("shutdown_grace_seconds = -1", "shutdown_grace_seconds"),
        ("shutdown_grace_seconds = inf", "shutdown_grace_seconds"),
        ("region = ''", "region"),
        ("region = 'a:b'", "region"),
        ("region = 'A b'", "region"),
        ('region = "a\\n"', "region"),
        ("limits = 1", "limits"),
        ("this is no TOML", "line 1"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, text: str, where: str) -> None:
    """The message names the file and the setting."""
    with pytest.raises(ConfigurationError) as refusal:
        load(tmp_path, text)

    assert str(refusal.value).startswith(f"{tmp_path}/kmsd.toml: ")
    assert where in str(refusal.value)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", ".", "binary"):
        with pytest.raises(ConfigurationError, match=str(tmp_path)):
            load_config(tmp_path / name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_settings_or_an_error(tmp_path: Path, data: bytes) -> None:
    """Nothing else is raised."""
    path = tmp_path / "any"
    path.write_bytes(data)
    try:
        load_config(path)
    except ConfigurationError:
        return
