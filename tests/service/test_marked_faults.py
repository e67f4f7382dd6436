"""A fault that nobody foresaw gives nothing of a request away, whatever its exception holds (see `kmsd.logs`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, NoReturn

import msgspec
import pytest

from kmsd.api import OPERATIONS
from kmsd.api.deletion import SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest
from kmsd.api.errors import KMSInternalError
from kmsd.api.operation import Cost, KeyState, Operation
from kmsd.service.batch import Batch
from kmsd.wire.codec import RequestDecoder
from tests.support.embedded import ROOT, Embedded, answers_in
from tests.support.marked_requests import MarkedRequests
from tests.support.marks import Marks

OpenService = Callable[..., Awaitable[Embedded]]


def fail(*arguments: Any) -> NoReturn:
    """Raise what holds the request in every way that an exception can hold something."""
    request = arguments[1]
    members = {name: getattr(request, name) for name in request.__struct_fields__}
    shown = {name: bytes(value) if isinstance(value, memoryview) else value for name, value in members.items()}
    text = f"{shown}"
    cause = LookupError(text)
    fault = ZeroDivisionError(text, shown)
    fault.add_note(text)
    raise fault from cause


async def fail_later(*arguments: Any) -> NoReturn:
    fail(*arguments)


async def ask(service: Embedded, operation: Operation[Any, Any], params: dict[str, Any]) -> str:
    """Have a request fail, and return the text of what it was answered with."""
    body = msgspec.msgpack.encode({"id": 1, "op": operation.name, "params": params})
    batch = Batch()
    later = service.pipeline.serve(ROOT, RequestDecoder().decode(memoryview(body)), batch)
    if later is not None:
        batch = await later
    else:
        service.pipeline.finish(batch)
    [answer] = answers_in(batch.out)
    assert isinstance(answer.error, KMSInternalError), answer.error
    return f"{answer.error!r} {answer.error.request_id}"


def break_handlers(service: Embedded) -> None:
    """Have every operation fail from now on; its declaration stays as it is."""
    for entry in service.pipeline._table.values():
        entry.handler = fail if entry.operation.cost is Cost.CRYPTOGRAPHY else fail_later


class Broken(NamedTuple):
    """A service in which every operation fails, and the ARNs of keys that ROOT may use."""

    service: Embedded
    enabled: str
    pending_deletion: str

    def key_for(self, operation: Operation[Any, Any]) -> str:
        """A key in a state in which the operation gets as far as its handler."""
        return self.enabled if KeyState.ENABLED in operation.usable_in else self.pending_deletion


@pytest.fixture
async def broken(open_service: OpenService) -> Broken:
    service = await open_service()
    enabled, pending = await service.make_key(ROOT), await service.make_key(ROOT)
    await service.ask(ROOT, SCHEDULE_KEY_DELETION, ScheduleKeyDeletionRequest(key_id=pending))
    break_handlers(service)
    return Broken(service, enabled, pending)


async def test_a_fault_gives_nothing_away(broken: Broken) -> None:
    """Not to the caller, not to the trail and not to the service log, which has its type and places."""
    service = broken.service
    marks = Marks()
    told = [
        await ask(service, operation, params)
        for operation in OPERATIONS
        for params in MarkedRequests(operation, marks, broken.key_for(operation), {}).well_formed()
    ]

    log = service.log.getvalue()
    assert log.count("ZeroDivisionError") == len(told)
    assert "test_marked_faults.py" in log
    assert marks.leaks("the service log", log) == []
    assert marks.leaks("the answers", "\n".join(told)) == []
    assert marks.leaks_below(service.directory) == []


async def test_a_fault_that_is_logged_whole_is_found(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same search finds each of them in a log that says what exceptions say."""
    service = broken.service
    marks = Marks()
    said = []
    monkeypatch.setattr(
        service.pipeline._logger, "fault", lambda _event, fault, **_fields: said.append(f"{fault.__cause__} {fault!r}")
    )
    marked = [
        (operation, params)
        for operation in OPERATIONS
        for params in MarkedRequests(operation, marks, broken.key_for(operation), {}).well_formed()
        if marks.leaks("params", repr(params))
    ]
    for operation, params in marked:
        await ask(service, operation, params)

    assert len(marked) > len(OPERATIONS) // 2
    assert [bool(marks.leaks("the log", text)) for text in said] == [True] * len(marked)
