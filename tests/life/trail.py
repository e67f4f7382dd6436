"""The audit trail of a host, which has to verify and to tell exactly of what happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec

from kmsd.api.administration import GET_AUDIT_ANCHOR, GetAuditAnchorRequest
from kmsd.api.deletion import GET_KEY_LAST_USAGE, GetKeyLastUsageRequest
from kmsd.audit.trail_check import check_trail as verify
from kmsd_client.cli.audit_records import trail_file
from tests.life.host import Host
from tests.life.model import TOLD, Model
from tests.support.assembled import AUDIT
from tests.support.workload import happened

_BEGINS = {"ApiCallIntent", "FileBegin"}
_USES = {"Encrypt", "Decrypt", "ReEncrypt", "GenerateDataKey", "EncryptFile", "DecryptFile"}


def check_trail(host: Host, model: Model) -> None:
    """Stop the service, and check its trail, and the uses of each key that are counted against those it tells of."""
    public_key = host.ask(GET_AUDIT_ANCHOR, GetAuditAnchorRequest()).response.public_key
    usages = {key: host.ask(GET_KEY_LAST_USAGE, GetKeyLastUsageRequest(key_id=key)).response for key in model.keys}
    host.stop()
    report = verify([trail_file(path) for path in _files(host)], public_key=public_key)
    assert report.open_intents == (), f"open: {report.open_intents}"
    assert report.unsigned == 0, f"{report.unsigned} records are not signed"
    assert told_by(host) == model.told
    used = _uses(_ended(host))
    for key, usage in usages.items():
        assert usage.uses == used[key], f"{key} was used {used[key]}, and {usage.uses} are counted"


def told_by(host: Host) -> Counter[str]:
    """Return how often the trail tells of what changes keys and aliases visibly."""
    return Counter(one["eventName"] for one in _ended(host) if one["eventName"] in TOLD and happened(one))


def _files(host: Host) -> list[Path]:
    folder = host.directory / AUDIT
    return [*sorted(folder.glob("audit.log.[0-9]*")), folder / "audit.log"]


def _ended(host: Host) -> list[dict[str, Any]]:
    records = [msgspec.json.decode(line) for path in _files(host) for line in path.read_bytes().splitlines()]
    return [one for one in records if one["eventType"] not in _BEGINS]


def _uses(ended: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Return how often each key was used, by operation: ReEncrypt uses two, or one twice."""
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for one in ended:
        if one["eventName"] in _USES and _is_use(one):
            keys = {resource["ARN"].rpartition("/")[2] for resource in one["resources"]}
            for key in keys:
                used[key][one["eventName"]] += 2 if one["eventName"] == "ReEncrypt" and len(keys) == 1 else 1
    return used


def _is_use(record: dict[str, Any]) -> bool:
    """Whether it tells of a use: also of a file amid which kmsd was killed, as a worker may have had its key."""
    return happened(record) or "settledAtStart" in (record.get("additionalEventData") or {})
