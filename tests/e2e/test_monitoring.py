"""A confined daemon as monitoring sees it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from kmsd.api.metrics import GET_METRICS, GetMetricsRequest
from kmsd.metrics.families import FAMILIES, KEY_DELETION, Kind
from kmsd_client import Client
from tests.support.dev_daemon import DevDaemon

CONTEXT = "context-that-nobody-else-may-see"
SECRET = b"plaintext-that-nobody-else-may-see"


def text_of(client: Client) -> str:
    return client.call(GET_METRICS, GetMetricsRequest()).text


def read(client: Client) -> dict[str, float]:
    """Each sample's value, by how it stands in the text."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text_of(client))
        for sample in family.samples
    }


def value(client: Client, name: str, **labels: str) -> float:
    return read(client).get(f"{name}{sorted(labels.items())}", 0.0)


def test_every_metric_that_is_declared_is_told_as_declared(dev: DevDaemon, client: Client, key: str) -> None:
    """And no other; all but those that have no value on this host. The first who asks has the library imported, which
    the daemon's confinement must allow."""
    client.encrypt(key_id=key, plaintext=SECRET)
    told = {family.name: family for family in text_string_to_metric_families(text_of(client))}
    declared = {family.name.removesuffix("_total"): family for family in FAMILIES}

    without = {"kmsd_backup_age_seconds", KEY_DELETION.name}
    assert set(declared) - set(told) <= without
    assert set(told) <= set(declared)
    for name, family in told.items():
        assert family.type == declared[name].kind
        assert family.documentation == declared[name].meaning
        for sample in family.samples:
            extra = {"le"} if sample.name.endswith("_bucket") and family.type == Kind.HISTOGRAM else set()
            assert set(sample.labels) == {*declared[name].labels, *extra}


def test_numbers_go_up(dev: DevDaemon, client: Client, key: str) -> None:
    """With what is done."""
    names = {"operation": "Encrypt", "outcome": "ok"}
    counted = value(client, "kmsd_requests_total", **names)
    timed = value(client, "kmsd_request_duration_seconds_count", operation="Encrypt")
    sequence, written = value(client, "kmsd_audit_sequence"), value(client, "kmsd_audit_written_bytes_total")
    commits = value(client, "kmsd_store_sequence")
    with dev.client() as other:
        for _ in range(5):
            other.encrypt(key_id=key, plaintext=SECRET)
        connected = value(client, "kmsd_connections")
    other_key = client.create_key().key_metadata.arn

    assert value(client, "kmsd_requests_total", **names) == counted + 5
    assert value(client, "kmsd_request_duration_seconds_count", operation="Encrypt") == timed + 5
    assert value(client, "kmsd_audit_sequence") >= sequence + 5
    assert value(client, "kmsd_audit_written_bytes_total") > written
    assert value(client, "kmsd_store_sequence") > commits
    assert connected >= 2
    assert other_key not in text_of(client)


def test_nothing_secret_is_told(dev: DevDaemon, client: Client, key: str) -> None:
    """Neither plaintexts nor contexts nor names of keys and callers."""
    client.create_alias(alias_name="alias/of-monitored", target_key_id=key)
    client.encrypt(key_id=key, plaintext=SECRET, encryption_context={"what": CONTEXT})

    text = text_of(client)

    for secret in (SECRET.decode(), CONTEXT, "of-monitored", key, key.rpartition("/")[2]):
        assert secret not in text


def test_a_sealed_daemon_tells_that_it_is(dev: DevDaemon, client: Client, tmp_path: Path) -> None:
    """Who seals it need not be the one who looks."""
    assert value(client, "kmsd_sealed") == 0
    client.seal()
    try:
        assert value(client, "kmsd_sealed") == 1
    finally:
        assert dev.run("kms", "unseal", "--configured", cwd=tmp_path).returncode == 0
    assert value(client, "kmsd_sealed") == 0
    assert value(client, "kmsd_token_jobs_total", job="Unwrap", outcome="ok") >= 1


def test_the_command_puts_it_where_it_is_collected(dev: DevDaemon, client: Client, tmp_path: Path) -> None:
    """As a collector reads it."""
    done = dev.run("kms", "metrics", "--textfile", "kmsd.prom", cwd=tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    names = {family.name for family in text_string_to_metric_families((tmp_path / "kmsd.prom").read_text())}
    assert {"kmsd_up", "kmsd_sealed", "kmsd_requests"} <= names
