"""The audit trail of a host, which has to verify and to tell exactly of what happened."""

from __future__ import annotations

from collections import Counter

import msgspec

from kmsd.api.administration import GET_AUDIT_ANCHOR, GetAuditAnchorRequest
from kmsd.audit.trail_check import check_trail as verify
from kmsd_client.cli.audit_records import trail_file
from tests.life.host import Host
from tests.life.model import Model
from tests.support.assembled import AUDIT
from tests.support.workload import happened


def check_trail(host: Host, model: Model) -> None:
    """Stop the service, and check its trail."""
    key = host.ask(GET_AUDIT_ANCHOR, GetAuditAnchorRequest()).response.public_key
    host.stop()
    folder = host.directory / AUDIT
    files = [*sorted(folder.glob("audit.log.[0-9]*")), folder / "audit.log"]
    report = verify([trail_file(path) for path in files], public_key=key)
    assert report.open_intents == (), f"open: {report.open_intents}"
    assert report.unsigned == 0, f"{report.unsigned} records are not signed"
    records = [msgspec.json.decode(line) for path in files for line in path.read_bytes().splitlines()]
    told = Counter(one["eventName"] for one in records if one["eventType"] != "ApiCallIntent" and happened(one))
    differing = {name: (told[name], count) for name, count in model.told.items() if told[name] != count}
    assert not differing, f"the trail tells how often, and it happened so often: {differing}"
