"""Every metric that there is: its name, kind, labels, and what it means. METRICS.md is the same as a table.

Alerts and dashboards of others name these: a name, once released, keeps its meaning.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from kmsd.api.metrics import UP


class Kind(enum.StrEnum):
    """The kinds of Prometheus metrics that are used, as its text format calls them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Family:
    """A metric; `labels` tell its series apart."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


class Distribution(NamedTuple):
    """The value of a histogram: how many observations each bucket has, not those of smaller ones, and their sum.

    `counts` has one more than `bounds`, for what is above all of them.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Reading(NamedTuple):
    """What a series stands at: `labels` are the values of its family's."""

    family: Family
    value: float | Distribution
    labels: tuple[str, ...] = ()


def _counter(name: str, meaning: str, *labels: str) -> Family:
    return Family(name, Kind.COUNTER, meaning, labels)


def _gauge(name: str, meaning: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, meaning, labels)


def _histogram(name: str, meaning: str, *labels: str) -> Family:
    return Family(name, Kind.HISTOGRAM, meaning, labels)


SERVING = _gauge(UP, "1; `kms metrics --textfile` writes 0 when kmsd does not tell how it is.")
BUILD = _gauge("kmsd_build_info", "1; the version stands in the label.", "version")
STARTED = _gauge("kmsd_start_time_seconds", "When kmsd began to serve, in seconds since 1970.")
SEALED = _gauge("kmsd_sealed", "1 while kmsd is sealed and serves nothing that needs keys, else 0.")

REQUESTS = _counter(
    "kmsd_requests_total",
    "Requests by operation (unknown: a name that nobody declared) and outcome: ok, the error's code, or canceled if "
    "the peer hung up. Of files it counts that their worker began, not how they ended. GetCredential is systemd's.",
    "operation",
    "outcome",
)
REQUEST_SECONDS = _histogram(
    "kmsd_request_duration_seconds",
    "From the arrival of a request to its reply being ready, waiting included. What is refused before it is looked at "
    "(unknown operations, too many in flight) is not in it.",
    "operation",
)
REQUESTS_IN_FLIGHT = _gauge("kmsd_requests_in_flight", "Requests that await something; the one that asks included.")
REPLIES_WITHDRAWN = _counter(
    "kmsd_replies_withdrawn_total",
    "Replies that became AuditUnavailable because their records could not be written; kmsd_requests_total counts them "
    "as what they were before.",
)
CONNECTIONS = _gauge("kmsd_connections", "Connections that are served.")
CONNECTIONS_LIMIT = _gauge("kmsd_connections_limit", "As many connections are served at most (limits.connections).")
PAUSES = _counter(
    "kmsd_throttling_pauses_total",
    "How often reading from a peer was paused because its uid was above its rate of requests.",
)
OVER_AUDIT_BUDGET = _gauge("kmsd_audit_budgets_exceeded", "Uids whose budget of audit records is used up.")
FILES = _gauge("kmsd_file_streams", "Files being encrypted or decrypted, each by a worker.")
FILES_LIMIT = _gauge("kmsd_file_streams_limit", "As many files are worked on at once at most (limits.file_workers).")

SECRET_MEMORY_USED = _gauge("kmsd_secret_memory_used_bytes", "Secret memory in use.")
SECRET_MEMORY_LIMIT = _gauge("kmsd_secret_memory_limit_bytes", "As much secret memory there is at most.")

AUDIT_SEQUENCE = _gauge("kmsd_audit_sequence", "The number of the audit trail's last record.")
AUDIT_REFUSALS = _counter(
    "kmsd_audit_refusals_total", "How often records could not be written; while that lasts, it is tried each second."
)
AUDIT_WRITTEN = _counter("kmsd_audit_written_bytes_total", "Bytes written into the audit trail.")
AUDIT_LAG = _gauge(
    "kmsd_audit_lag_seconds",
    "For how long the oldest record that may not be on the disk yet has been waiting for that, 0 if none is. Not with "
    "audit.sync = os, which waits for nothing.",
)
AUDIT_CHECKPOINT = _gauge(
    "kmsd_audit_checkpoint_sequence", "The number of the last checkpoint of the audit trail that is on the disk."
)

EVENTS = _counter("kmsd_events_written_total", "Events written into the event log.")
EVENTS_CURRENT = _gauge(
    "kmsd_events_current", "1 if the event log has the events of all that is on record; 0 while it does not, or cannot."
)
EVENT_SUBSCRIBERS = _gauge("kmsd_event_subscribers", "Connections over which somebody is sent events.")

STORE_SEQUENCE = _gauge("kmsd_store_sequence", "The number of the store's last commit.")
STORE_READABLE = _gauge("kmsd_store_readable", "1 if the store could be read for this answer, else 0.")
BACKUP_AGE = _gauge("kmsd_backup_age_seconds", "The age of the newest backup that was kept; missing if there is none.")

TOKEN_JOBS = _counter(
    "kmsd_token_jobs_total",
    "Uses of the token, by what was to be done and the outcome: ok, or the class of the error.",
    "job",
    "outcome",
)
TOKEN_JOB_SECONDS = _histogram(
    "kmsd_token_job_duration_seconds", "How long uses of the token took, waiting for others' included.", "job"
)

CLOCK_IN_DOUBT = _gauge(
    "kmsd_clock_in_doubt",
    "1 while the host's clock is not believed, else 0. Nothing falls due by a time that may not have come.",
)
HOUSEKEEPING_LAG = _gauge(
    "kmsd_housekeeping_lag_seconds",
    "For how long what fell due first of any key (rotation, warning, destruction) has been waiting to be done.",
)

PENDING_USES = _counter(
    "kmsd_pending_deletion_uses_total", "Uses of keys that were refused because the key is going to be destroyed."
)
KEYS_PENDING_DELETION = _gauge(
    "kmsd_keys_pending_deletion",
    "Keys that are going to be destroyed. Missing while more than 1,000 keys fall due within 30 days.",
)
KEY_DELETION = _gauge(
    "kmsd_key_deletion_seconds",
    "Seconds until a key is destroyed at the earliest, of the 100 whose turn is next.",
    "key_id",
)

FAMILIES = (
    SERVING,
    BUILD,
    STARTED,
    SEALED,
    REQUESTS,
    REQUEST_SECONDS,
    REQUESTS_IN_FLIGHT,
    REPLIES_WITHDRAWN,
    CONNECTIONS,
    CONNECTIONS_LIMIT,
    PAUSES,
    OVER_AUDIT_BUDGET,
    FILES,
    FILES_LIMIT,
    SECRET_MEMORY_USED,
    SECRET_MEMORY_LIMIT,
    AUDIT_SEQUENCE,
    AUDIT_REFUSALS,
    AUDIT_WRITTEN,
    AUDIT_LAG,
    AUDIT_CHECKPOINT,
    EVENTS,
    EVENTS_CURRENT,
    EVENT_SUBSCRIBERS,
    STORE_SEQUENCE,
    STORE_READABLE,
    BACKUP_AGE,
    TOKEN_JOBS,
    TOKEN_JOB_SECONDS,
    CLOCK_IN_DOUBT,
    HOUSEKEEPING_LAG,
    PENDING_USES,
    KEYS_PENDING_DELETION,
    KEY_DELETION,
)
