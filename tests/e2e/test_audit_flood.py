"""A uid that has more recorded than its audit budget allows, against a real daemon (DESIGN 9)."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from kmsd.api.errors import ThrottlingError
from kmsd_client import Client
from tests.support.dev_daemon import DevDaemon

BURST_BYTES = 20_000
SETTINGS = f"[limits]\naudit_bytes_per_second_per_uid = 100\naudit_burst_bytes_per_uid = {BURST_BYTES}\n"


def ask_until_refused(client: Client) -> int:
    """How often it was served before the budget was used up."""
    # No record of GenerateRandom has less than 200 bytes.
    for served in range(BURST_BYTES // 200):
        try:
            client.generate_random(number_of_bytes=1)
        except ThrottlingError:
            return served
    raise AssertionError("it was served all the time")


def test_a_flood_fills_no_disk_and_loses_no_count(short_path: Path, prepared: Path) -> None:
    """It is refused with a reason, who administers can look all the time, and the stop writes what was counted."""
    daemon = DevDaemon(shutil.copytree(prepared, short_path / "d"), settings=SETTINGS)
    try:
        daemon.start()
        with daemon.client() as client:
            served = ask_until_refused(client)
            client.status()
        daemon.stop()
        records = daemon.records()
    finally:
        daemon.end()

    [summary] = [record for record in records if record["eventName"] == "SummarizeRefusals"]
    told = summary["additionalEventData"]
    names = Counter(record["eventName"] for record in records)
    assert names["GenerateRandom"] == served
    assert set(told["errorCodes"]) == {"ThrottlingException"}
    assert told["count"] == told["operations"]["GenerateRandom"] > 1, "the client asked again"
    assert [record["eventName"] for record in records[-3:]] == ["Status", "SummarizeRefusals", "Stop"]
