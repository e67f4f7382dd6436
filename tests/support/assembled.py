"""The daemon's service as it is assembled, without its socket, its token and its file workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import msgspec

from kmsd.api.administration import SEAL, SealRequest
from kmsd.api.errors import AuditUnavailableError, KmsError
from kmsd.api.operation import Operation
from kmsd.config import Audit, Config, Limits
from kmsd.envelope.pool import WorkerPool
from kmsd.hsm.root import PinSource, Root
from kmsd.identity.principals import Administrators
from kmsd.logs import StructuredLogger
from kmsd.memory.arena import Arena
from kmsd.processes.zygote import Zygote
from kmsd.server.assembly import Service
from kmsd.server.foundation import Foundation
from kmsd.service.batch import Batch
from kmsd.store.base import StoreError
from kmsd.wire.codec import ParamsDecoder, RequestDecoder
from kmsd.wire.framing import LENGTH_BYTES
from tests.support.at_once import Processes, directory_of
from tests.support.embedded import MemoryRoot, answers_in, person, request_frame

_ResponseT = TypeVar("_ResponseT", bound=msgspec.Struct)

# The folders of a service, two as on a host: what is synced in one says nothing of the other.
STATE, AUDIT = FOLDERS = ("state", "audit")

# What is one administrator here stands for many clients.
_LIMITS = Limits(keys_per_uid=100_000, audit_bytes_per_second_per_uid=1 << 40, audit_burst_bytes_per_uid=1 << 40)

ADMINISTRATOR = person(0, user="root", gid=0, administrator=True)


class KeptRoot(MemoryRoot):
    """A token whose memory outlives the process: in a file, and told to `told` when it changes."""

    def __init__(self, path: Path, told: Callable[[str, int], None]) -> None:
        super().__init__()
        self._path = path
        self._told = told
        if path.exists():
            self.anchors = msgspec.json.decode(path.read_bytes(), type=dict[str, int])

    async def keep_anchor(self, store_id: str, sequence: int, pin: PinSource | None = None) -> bool:
        kept = await super().keep_anchor(store_id, sequence, pin)
        draft = self._path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(self.anchors))
        draft.rename(self._path)
        self._told(store_id, self.anchors[store_id])
        return kept


class Assembled:
    """An unsealed service on the files of a directory; made by `open`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        audit: Audit,
        root: Root,
        log: TextIO,
        limits: Limits = _LIMITS,
        pool: WorkerPool | None = None,
        **times: Any,
    ) -> Assembled:
        """Open, or begin, the store and the trail in `directory`, and unseal; raises what a start may raise.

        Files need a `pool`. `times` are the clocks of its foundation, if they are not this host's.
        """
        service = await Service.open(
            Foundation(
                config=Config(audit=audit, limits=limits, shutdown_grace_seconds=10),
                zygote=cast("Zygote", None),  # nothing is asked of it while no file is encrypted
                arena=Arena(256 * 1024),
                logger=StructuredLogger(log),
                root=root,
                pin_configured=True,
                administrators=Administrators(uids=frozenset({0})),
                admit=lambda _: None,
                directory=directory_of(),
                processes=Processes(),
                findings=[],
                host_policy=None,
                store_path=directory / STATE / "store.sqlite",
                audit_path=directory / AUDIT / "audit.log",
                founds=True,
                log_is_kept=True,
                **times,
            )
        )
        if pool is not None:
            service._pool = service._files._pool = pool
        try:
            await service.unseal()
        except BaseException:
            # The daemon ends here, and records no stop of what never started.
            with contextlib.suppress(KmsError, StoreError):
                service._trail.close()
            with contextlib.suppress(KmsError, StoreError):
                await service._store.close()
            raise
        return cls(service)

    async def ask(self, operation: Operation[Any, _ResponseT], request: msgspec.Struct) -> _ResponseT:
        """Return the response to a request of an administrator; raises the error that it was answered with."""
        [answer] = answers_in((await self.serve(request_frame(operation, request))).out)
        if answer.error is not None:
            raise answer.error
        assert answer.result is not None
        return ParamsDecoder(operation.response, max_bytes=1 << 20).decode(memoryview(answer.result))

    async def serve(self, frame: bytes | bytearray) -> Batch:
        """Answer a request of an administrator."""
        batch = Batch()
        pipeline = self._service._pipeline
        later = pipeline.serve(ADMINISTRATOR, RequestDecoder().decode(memoryview(frame)[LENGTH_BYTES:]), batch)
        if later is not None:
            return await later
        pipeline.finish(batch)
        if pipeline.settles:
            await pipeline.settle(batch)
        return batch

    @property
    def sealed(self) -> bool:
        return self._service.sealed

    async def seal_and_unseal(self) -> None:
        """Take the keys away, as an administrator may, and bring them back."""
        await self.ask(SEAL, SealRequest())
        await self.unseal()

    async def unseal(self) -> None:
        """Bring the keys back."""
        await self._service.unseal()

    async def maintain(self) -> None:
        """Do what the service does every few seconds: sign the trail, begin a new file of it."""
        with contextlib.suppress(AuditUnavailableError):  # is a warning in its log
            await self._service._trail.maintain()
        await self._service._custody.checkpoints.sign_if_possible()

    async def close(self) -> None:
        """Stop, as on SIGTERM."""
        await self._service.close()
