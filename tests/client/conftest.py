"""A scripted daemon, and both kinds of client behind one face."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from kmsd_client import AsyncClient, Client
from tests.client.scripted import ScriptedDaemon


class Caller(Protocol):
    """Either kind of client, called like the blocking one."""

    def call(self, operation: Any, request: Any) -> Any: ...
    def call_with_descriptors(self, operation: Any, request: Any) -> tuple[Any, list[int]]: ...
    def method(self, name: str, **members: Any) -> Any: ...
    def close(self) -> None: ...


class SyncCaller:
    def __init__(self, path: Path, timeout: float) -> None:
        self._client = Client(path, timeout)
        self.call = self._client.call
        self.call_with_descriptors = self._client.call_with_descriptors
        self.close = self._client.close

    def method(self, name: str, **members: Any) -> Any:
        return getattr(self._client, name)(**members)


class AsyncCaller:
    def __init__(self, path: Path, timeout: float) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(path, timeout)

    def call(self, operation: Any, request: Any) -> Any:
        return self._runner.run(self._client.call(operation, request))

    def call_with_descriptors(self, operation: Any, request: Any) -> tuple[Any, list[int]]:
        return self._runner.run(self._client.call_with_descriptors(operation, request))

    def method(self, name: str, **members: Any) -> Any:
        return self._runner.run(getattr(self._client, name)(**members))

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


MakeCaller = Callable[..., Caller]


@pytest.fixture
def daemon(short_path: Path) -> Iterator[ScriptedDaemon]:
    daemon = ScriptedDaemon(short_path / "s")
    yield daemon
    daemon.close()


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "async"])
def make_caller(request: pytest.FixtureRequest) -> Iterator[MakeCaller]:
    callers: list[Caller] = []

    def make(path: Path, timeout: float = 10.0) -> Caller:
        caller: Caller = request.param(path, timeout)
        callers.append(caller)
        return caller

    yield make
    for caller in callers:
        caller.close()


@pytest.fixture
def caller(make_caller: MakeCaller, daemon: ScriptedDaemon) -> Caller:
    return make_caller(daemon.path)
