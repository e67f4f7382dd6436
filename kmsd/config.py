"""The configuration: every setting with its default; units stand in the names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
# Longer than an hour is a mistake: systemd ends a service that takes 90 seconds to start or to stop.
_LONGEST_SECONDS = 3600


class ConfigurationError(ValueError):
    """The configuration file is not valid; the message says where."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the sections: a key nobody knows is an error."""


class Limits(Section, frozen=True, kw_only=True):
    """What one uid, and all together, may use (DESIGN 13)."""

    connections: Positive = 1024
    connections_per_uid: Positive = 64
    requests_in_flight_per_uid: Positive = 256
    requests_per_second_per_uid: Positive = 20_000
    # A request is charged at least once, and once more for each so many bytes: encryption of 4 KiB takes about twice
    # the time of the smallest request.
    bytes_per_request_charge: Positive = 4096
    file_streams_per_uid: Positive = 4
    keys_per_uid: NotNegative = 1000
    # How many files at once, of which one uid may have a quarter; 0: as many as there are cores, and four uids' streams
    # at least.
    file_workers: NotNegative = 0
    keys_in_memory: Positive = 10_000
    send_buffer_bytes_per_connection: Positive = 1024 * 1024


class Memory(Section, frozen=True, kw_only=True):
    """Secret memory; 0 bytes: half of RLIMIT_MEMLOCK, at most 8 MiB."""

    limit_bytes: NotNegative = 0
    allow_fallback: bool = True


class Audit(Section, frozen=True, kw_only=True):
    """The audit trail; `sync` is interval, always or os."""

    sync: Literal["interval", "always", "os"] = "interval"


class Hsm(Section, frozen=True, kw_only=True):
    """The token."""

    deadline_seconds: Annotated[float, Meta(gt=0, le=_LONGEST_SECONDS)] = 30.0


class Config(Section, frozen=True, kw_only=True):
    """All settings."""

    # Of the form that AWS regions have, so that tools which check ARNs accept it.
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}\Z")] = "local-host-1"
    shutdown_grace_seconds: Annotated[float, Meta(ge=0, le=_LONGEST_SECONDS)] = 10.0
    limits: Limits = Limits()
    memory: Memory = Memory()
    audit: Audit = Audit()
    hsm: Hsm = Hsm()


def load_config(path: Path) -> Config:
    """Read a TOML file; raises ConfigurationError for anything that is not a known key with a value of its type."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Config)
    except (OSError, UnicodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
