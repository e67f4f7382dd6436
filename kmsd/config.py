"""The configuration: every setting with its default; units stand in the names."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
# A century is more than anybody means.
Days = Annotated[float, Meta(ge=0, le=36_525)]
# The daemon leaves the directory it was started in.
AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\0]*\Z")]
# The longest path that fits into sockaddr_un (unix(7): 108 bytes with the zero at the end).
SOCKET_PATH_BYTES = 107
# What `kmsd serve` reads unless it is told otherwise.
DEFAULT_PATH = Path("/etc/kmsd/kmsd.toml")
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
    # What one uid may have written into the audit trail. A record has some 600 bytes, so this is 1,700 requests a
    # second for ever, and 1.7 million at once: 95 seconds at the rate above.
    audit_bytes_per_second_per_uid: Positive = 1024 * 1024
    audit_burst_bytes_per_uid: Positive = 1024 * 1024 * 1024
    keys_in_memory: Positive = 10_000
    send_buffer_bytes_per_connection: Positive = 1024 * 1024


class Memory(Section, frozen=True, kw_only=True):
    """Secret memory; 0 bytes: half of RLIMIT_MEMLOCK, at most 8 MiB."""

    limit_bytes: NotNegative = 0
    allow_fallback: bool = True


class Audit(Section, frozen=True, kw_only=True):
    """The audit trail; `sync` is interval, always or os, and 0 stands for never."""

    sync: Literal["interval", "always", "os"] = "interval"
    # After how many records the audit key signs.
    checkpoint_records: Positive = 10_000
    # And at most so long after a record.
    checkpoint_seconds: Annotated[float, Meta(gt=0, le=_LONGEST_SECONDS)] = 60.0
    # When a new file is begun.
    rotate_bytes: NotNegative = 64 * 1024 * 1024
    rotate_days: Days = 30.0
    # When an old file loses the records of uses of keys: by its age, or when all files have more bytes.
    keep_days: Days = 0.0
    keep_bytes: NotNegative = 0


class Hsm(Section, frozen=True, kw_only=True):
    """The token, and what its PKCS#11 module may reach. `kmsd dev` makes its own and needs none of the names."""

    # The vendor's PKCS#11 library; without one `kmsd serve` does not start.
    module: str = ""
    token_label: Annotated[str, Meta(max_length=32)] = ""
    root_key_label: Annotated[str, Meta(min_length=1)] = "kmsd-root"
    # Where the PIN comes from: "credential:NAME" (systemd), "file:PATH", or nothing: an administrator unseals.
    pin: Annotated[str, Meta(pattern=r"^(|credential:[A-Za-z0-9_.-]+|file:/.+)\Z")] = ""
    # Variables that the module reads, such as SOFTHSM2_CONF.
    environment: dict[str, str] = {}
    deadline_seconds: Annotated[float, Meta(gt=0, le=_LONGEST_SECONDS)] = 30.0
    # What a token job may connect to: nothing, Unix sockets of this host (pcscd), or the network as well.
    connect: Literal["nothing", "local", "network"] = "nothing"
    # Files, folders and devices beyond the system's libraries that the module reads, and those that it writes.
    readable_paths: tuple[str, ...] = ()
    writable_paths: tuple[str, ...] = ()
    # Whether losing the token seals the daemon, and how often it is looked at; 0: never.
    when_lost: Literal["continue", "seal"] = "continue"
    check_seconds: Annotated[float, Meta(ge=0, le=_LONGEST_SECONDS)] = 0.0


class Paths(Section, frozen=True, kw_only=True):
    """Where `kmsd serve` keeps what it has; `kmsd dev` keeps everything in its folder."""

    state: AbsolutePath = "/var/lib/kmsd"
    audit: AbsolutePath = "/var/log/kmsd/audit.log"
    socket: AbsolutePath = "/run/kmsd/kmsd.sock"
    credential_socket: AbsolutePath = "/run/kmsd/credential.sock"
    policies: AbsolutePath = "/etc/kmsd/policy.d"


class Admins(Section, frozen=True, kw_only=True):
    """Who administers the service."""

    uids: tuple[NotNegative, ...] = (0,)
    groups: tuple[str, ...] = ("kms-admin",)


class Config(Section, frozen=True, kw_only=True):
    """All settings."""

    # Of the form that AWS regions have, so that tools which check ARNs accept it.
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}\Z")] = "local-host-1"
    # Whether to run with less protection than there could be ("report" says which), or to refuse.
    hardening: Literal["report", "require"] = "report"
    # Whom `kmsd serve` becomes when root starts it.
    user: Annotated[str, Meta(min_length=1)] = "kmsd"
    shutdown_grace_seconds: Annotated[float, Meta(ge=0, le=_LONGEST_SECONDS)] = 10.0
    limits: Limits = Limits()
    memory: Memory = Memory()
    audit: Audit = Audit()
    hsm: Hsm = Hsm()
    paths: Paths = Paths()
    administrators: Admins = Admins()


def load_config(path: Path) -> Config:
    """Read a TOML file; raises ConfigurationError for anything that is not a known key with a value of its type."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Config)
    except FileNotFoundError:
        hint = ": run `kmsd init` to make it, or name another with --config" if path == DEFAULT_PATH else ""
        raise ConfigurationError(f"{path}: No such file or directory{hint}") from None
    except (OSError, UnicodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def find_problems(path: Path) -> list[str]:
    """Return everything that keeps `load_config` from reading a file; it names only the first."""
    try:
        load_config(path)
    except ConfigurationError as error:
        first = str(error)
    else:
        return []
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError):
        return [first]
    problems = []
    for single in _single_settings(tables):
        try:
            msgspec.convert(single, Config)
        except msgspec.ValidationError as error:
            problems.append(f"{path}: {error}")
    return problems or [first]


def _single_settings(tables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from ({name: {inner: setting}} for inner, setting in value.items())
        else:
            yield {name: value}


def digest(config: Config) -> str:
    """Return the SHA-256 of all settings in hexadecimal: equal settings, written in whatever way, have one digest."""
    return hashlib.sha256(msgspec.json.encode(config, order="deterministic")).hexdigest()
