"""What an earlier run left open is settled once, as the store knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmsd.api.errors import AuditUnavailableError
from kmsd.audit.record import Kind, Record
from kmsd.service.seal import CONFIGURED
from kmsd.service.settling import Settling
from tests.support.embedded import Embedded


def intent(request_id: str) -> Record:
    return Record(Kind.INTENT, "CreateKey", actor=None, request_id=request_id, read_only=False)


async def test_a_trail_that_fills_up_settles_all_or_nothing(tmp_path: Path) -> None:
    """The next attempt to unseal begins anew, and no operation may have two outcomes."""
    service = await Embedded.open(tmp_path)
    await service.store.commit("two", [])
    service.trail.append([intent("one"), intent("two")])
    await service.close()
    service = await Embedded.open(tmp_path, initialize=False)
    await service.unsealing.unseal(CONFIGURED, lambda: None)
    settling = Settling(service.store, service.trail)
    service.trail.refuses = lambda record: record.request_id == "two"
    with pytest.raises(AuditUnavailableError):
        await settling.settle()
    service.trail.refuses = None

    await settling.settle()
    await settling.settle()

    outcomes = [line for line in service.lines() if line["eventType"] == Kind.OUTCOME]
    assert [(line["requestID"], "errorCode" in line) for line in outcomes] == [("one", True), ("two", False)]
    await service.close()
