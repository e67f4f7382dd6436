"""The service in the test's own process: every part is real but the token and the file workers.

Trail and store are the real ones with switches, by which a test makes them fail, or wait, at one exact point.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from kmsd.access.decision import Authorizer, HostPolicy
from kmsd.api import OPERATIONS
from kmsd.api.errors import AuditUnavailableError, KmsError, RecoverySharesError
from kmsd.api.keys import CREATE_KEY, CreateKeyRequest
from kmsd.api.operation import Operation
from kmsd.audit.checkpoint import CHECKPOINT
from kmsd.audit.record import Actor, Kind, Record
from kmsd.audit.writer import SyncMode, Trail
from kmsd.config import Limits
from kmsd.envelope.pool import FileJob, FileOutcome, FileStream, WorkerPool
from kmsd.events.log import NAME as EVENTS_NAME
from kmsd.events.projection import Projection
from kmsd.hsm.root import PinSource, TokenInfo, WrappedDomainKey
from kmsd.identity import answering
from kmsd.identity.directory import Directory
from kmsd.identity.principals import Administrators, Caller
from kmsd.logs import StructuredLogger
from kmsd.material.ciphertext import BlobCipher
from kmsd.material.hierarchy import Hierarchy
from kmsd.material.versions import Versions
from kmsd.memory.arena import Arena
from kmsd.memory.page import Page
from kmsd.metrics import families
from kmsd.metrics.meter import OF_REQUESTS, OF_TOKEN_JOBS, Meter
from kmsd.recovery.job import LENGTH_BYTES as LENGTH
from kmsd.recovery.shares import SharesError, read_shares
from kmsd.service import (
    administration,
    aliases,
    backups,
    credentials,
    events,
    files,
    grants,
    host_policies,
    key_deletion,
    key_rotation,
    keys,
    last_usage,
    metrics,
    policies,
    seal_requests,
    simulation,
    symmetric,
    tags,
    timekeeping,
    unsupported,
)
from kmsd.service.audit_accounts import AuditAccounts
from kmsd.service.batch import Batch
from kmsd.service.calendar import Calendar
from kmsd.service.call import Session
from kmsd.service.checkpoints import Checkpoints, log_anchor
from kmsd.service.credential_delivery import CredentialDelivery
from kmsd.service.default_key_care import DefaultKeyCare
from kmsd.service.default_keys import DefaultKeys
from kmsd.service.destruction import Destruction
from kmsd.service.event_feed import EventFeed
from kmsd.service.facts import Surroundings
from kmsd.service.gate import Gate as KeyGate
from kmsd.service.housekeeping import Housekeeping
from kmsd.service.identifiers import Arns
from kmsd.service.key_changes import KeyChanges
from kmsd.service.key_cipher import KeyCipher
from kmsd.service.key_lookup import KeyLookup
from kmsd.service.own_changes import OwnChanges
from kmsd.service.pending_uses import PendingUses
from kmsd.service.pipeline import Pipeline
from kmsd.service.records import KeyRecords
from kmsd.service.refusals import Refusals
from kmsd.service.request_ids import RequestIds
from kmsd.service.rotation import Rotation
from kmsd.service.scratch import Scratch
from kmsd.service.seal import Seal
from kmsd.service.subjects import Subjects
from kmsd.service.table import Handler, bind
from kmsd.service.token_anchor import TokenAnchor
from kmsd.service.unsealing import Unsealing
from kmsd.service.uses import KeyUses
from kmsd.store.base import Change, StateReport
from kmsd.store.rows import CredentialRow, GrantRow, KeyRow, MaterialRow, SettingsRow
from kmsd.store.sql import SqlStore
from kmsd.store.transfer import SNAPSHOT_NAME
from kmsd.wire.codec import ParamsDecoder, ReplyDecoder, RequestDecoder, append_request
from kmsd.wire.framing import LENGTH_BYTES
from tests.support.at_once import AtOnce
from tests.support.host_time import HostTime

ACCOUNT = "123456789012"
REGION = "local-host-1"
ARENA_BYTES = 256 * 1024

_ResponseT = TypeVar("_ResponseT", bound=msgspec.Struct)


class MemoryRoot:
    """A root that keeps domain keys as they are: what is tested lies above the token."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.gate: Gate | None = None
        self.seen: TokenInfo | None = None
        self.meter = Meter(OF_TOKEN_JOBS)
        # What it holds for each store.
        self.anchors: dict[str, int] = {}
        self.can_anchor = True
        # What each login was tried with; None stands for the configured source.
        self.pins: list[bytes | None] = []

    async def _pass(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault

    async def _login(self, pin: PinSource | None) -> None:
        room = bytearray(300)
        self.pins.append(None if pin is None else bytes(room[: pin.read_into(memoryview(room))]))
        await self._pass()

    async def look(self) -> TokenInfo:
        await self._pass()
        self.seen = TokenInfo("label", "serial", "maker", "model", "firmware", ())
        return self.seen

    async def make_domain_key(
        self, domain_key_id: str, generation: int, into: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        await self._login(pin)
        into[:] = os.urandom(len(into))
        return WrappedDomainKey(domain_key_id, generation, bytes(into))

    async def wrap_domain_key(
        self, domain_key_id: str, generation: int, key: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        await self._login(pin)
        return WrappedDomainKey(domain_key_id, generation, bytes(key))

    async def unwrap(
        self,
        records: Sequence[WrappedDomainKey],
        into: Sequence[memoryview],
        pin: PinSource | None = None,
        *,
        anchor: str | None = None,
    ) -> int | None:
        await self._login(pin)
        for record, view in zip(records, into, strict=True):
            view[:] = record.wrapped
        return None if anchor is None else self.anchors.get(anchor)

    async def keep_anchor(self, store_id: str, sequence: int, pin: PinSource | None = None) -> bool:  # noqa: ARG002 - the interface's
        await self._pass()
        if self.can_anchor:
            self.anchors[store_id] = max(sequence, self.anchors.get(store_id, 0))
        return self.can_anchor


class HostNames:
    """The names of a small host."""

    def __init__(self) -> None:
        self.users = {"root": 0, "www-data": 33, "alice": 1000, "bob": 1001}
        self.groups = {"kms-users": 500, "kms-auditors": 501, "kms-admin": 502}
        # Of whom somebody asks, by name: the groups, the primary one among them.
        self.memberships: dict[str, frozenset[int]] = {"alice": frozenset({500, 1000})}

    def user_name(self, uid: int) -> str | None:
        return next((name for name, one in self.users.items() if one == uid), None)

    def group_name(self, gid: int) -> str | None:
        return next((name for name, one in self.groups.items() if one == gid), None)

    def uid_of(self, name: str) -> int | None:
        return self.users.get(name)

    def gid_of(self, name: str) -> int | None:
        return self.groups.get(name)


class HostAnswers(AtOnce):
    """The same names and groups, for who can wait for them."""

    def __init__(self, names: HostNames) -> None:
        super().__init__(names)
        self._memberships = names.memberships

    async def ask(self, kind: answering.Kind, subject: answering.Subject) -> answering.Found:
        if kind == "groups_of":
            return sorted(self._memberships.get(str(subject), ()))
        return await super().ask(kind, subject)


class Gate:
    """Where something waits: a test sees that it `arrived`, and opens the gate when it likes."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.opened = asyncio.Event()

    async def wait(self) -> None:
        self.arrived.set()
        await self.opened.wait()


class SwitchedTrail(Trail):
    """The real trail: `refuses` says for which records an append fails, `unsyncable` whether every sync does."""

    refuses: Callable[[Record], bool] | None = None
    unsyncable = False
    sync_gate: Gate | None = None

    def append(self, records: Sequence[Record]) -> int:
        if self.refuses is not None and any(map(self.refuses, records)):
            raise AuditUnavailableError("audit trail: No space left on device")
        return super().append(records)

    async def sync(self) -> None:
        if self.sync_gate is not None:
            await self.sync_gate.wait()
        if self.unsyncable:
            raise AuditUnavailableError("audit trail: sync failed")
        await super().sync()


class SwitchedStore(SqlStore):
    """The real store: each fault is raised by the call of its name, each gate is waited at before the call."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.faults: dict[str, Exception] = {}
        self.gates: dict[str, Gate] = {}
        self.calls: list[str] = []

    async def _pass(self, name: str) -> None:
        self.calls.append(name)
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.faults:
            raise self.faults[name]

    async def key(self, key_id: str) -> KeyRow | None:
        await self._pass("key")
        return await super().key(key_id)

    async def material(self, key_id: str, number: int) -> MaterialRow | None:
        await self._pass("material")
        return await super().material(key_id, number)

    async def count_keys(self, creator_uid: int) -> int:
        await self._pass("count_keys")
        return await super().count_keys(creator_uid)

    async def credential(self, unit: str, name: str) -> CredentialRow | None:
        await self._pass("credential")
        return await super().credential(unit, name)

    async def count_grants(self, key_id: str) -> int:
        await self._pass("count_grants")
        return await super().count_grants(key_id)

    async def grants_for(self, key_id: str, grantees: Collection[str]) -> list[GrantRow]:
        rows = await super().grants_for(key_id, grantees)
        await self._pass("grants_read")
        return rows

    async def commit(self, mutation_id: str | None, changes: Sequence[Change]) -> None:
        await self._pass("commit")
        await super().commit(mutation_id, changes)
        await self._pass("committing")

    async def check_state(self) -> StateReport:
        await self._pass("check_state")
        return await super().check_state()

    async def committed(self, mutation_ids: Sequence[str]) -> set[str]:
        await self._pass("committed")
        return await super().committed(mutation_ids)


class ScriptedStream:
    """A file under way whose outcome the test decides."""

    def __init__(self, job: FileJob) -> None:
        self.direction = job.direction
        self.header = job.header
        self.message_key = bytes(job.message_key)
        # The other end stands for the worker: it sees when the client's end closes.
        client_end, self.worker_end = socket.socketpair()
        self.worker_end.setblocking(False)
        self.client_descriptor = client_end.detach()
        self.reported: asyncio.Future[FileOutcome] = asyncio.get_running_loop().create_future()
        self.acknowledged: asyncio.Future[KmsError | None] = asyncio.get_running_loop().create_future()

    async def outcome(self) -> FileOutcome:
        return await asyncio.shield(self.reported)

    async def acknowledge(self, error: KmsError | None = None) -> None:
        self.acknowledged.set_result(error)

    @property
    def abandoned(self) -> bool:
        """Whether nobody holds the client's end any more."""
        try:
            return self.worker_end.recv(1) == b""
        except BlockingIOError:
            return False


class ScriptedPool:
    """A pool without processes; `fault` is raised by `start`, which may wait at `gate`."""

    def __init__(self) -> None:
        self.streams: list[ScriptedStream] = []
        self.uids: list[int] = []
        self._more = asyncio.Event()
        self.fault: Exception | None = None
        self.gate: Gate | None = None

    async def start(self, job: FileJob, *, uid: int) -> FileStream:
        self.uids.append(uid)
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.streams.append(ScriptedStream(job))
        self._more.set()
        return cast("FileStream", self.streams[-1])

    async def started(self, count: int) -> None:
        """Wait until so many files are under way."""
        while len(self.streams) < count:
            self._more.clear()
            await self._more.wait()

    def close(self) -> None:
        for stream in self.streams:
            stream.worker_end.close()


class Answer(NamedTuple):
    """One reply of a batch: a raw result or an error."""

    id: int
    result: bytes | None
    error: KmsError | None
    descriptors: int


def request_frame(operation: Operation[Any, Any], request: msgspec.Struct, identifier: int = 1) -> bytearray:
    """A whole frame, as a client sends it."""
    out = bytearray()
    append_request(out, identifier, operation.name, request, max_bytes=operation.frame_bytes)
    return out


def answers_in(out: bytes | bytearray) -> list[Answer]:
    """The replies in a stream of whole frames."""
    found, decoder, rest = [], ReplyDecoder(), memoryview(bytes(out))
    while rest:
        length = int.from_bytes(rest[:LENGTH_BYTES], "big")
        assert len(rest) >= LENGTH_BYTES + length
        reply = decoder.decode(rest[LENGTH_BYTES : LENGTH_BYTES + length])
        result = None if reply.result is None else bytes(reply.result)
        found.append(Answer(reply.id, result, reply.error, reply.descriptors))
        rest = rest[LENGTH_BYTES + length :]
    return found


def person(
    uid: int = 1000,
    *,
    user: str | None = "alice",
    gid: int = 500,
    administrator: bool = False,
    unit: str | None = None,
    undetermined: frozenset[str] = frozenset(),
) -> Session:
    """A connected peer; by default alice, who may make keys because she is in kms-users."""
    caller = Caller(
        uid=uid,
        gid=gid,
        groups=frozenset({gid}),
        pid=4242,
        user=user,
        unit=unit,
        exe="/usr/bin/app",
        administrator=administrator,
        undetermined=undetermined,
    )
    return Session(caller, Actor(uid=uid, gid=gid, user=user, pid=4242, unit=unit, exe="/usr/bin/app"))


ALICE = person()
BOB = person(1001, user="bob", gid=1001)
AUDITOR = person(1002, user="carol", gid=501)
ROOT = person(0, user="root", gid=0, administrator=True)


class Sleeps:
    """Stands for `asyncio.sleep`: how long each was to be, and the test decides when it is over."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._asleep = asyncio.Event()
        self._woken = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._woken.clear()
        self._asleep.set()
        await self._woken.wait()

    async def wake(self) -> None:
        """Wait until somebody sleeps, and end that."""
        await asyncio.wait_for(self._asleep.wait(), 10)
        self._asleep.clear()
        self._woken.set()

    async def again(self) -> None:
        """Wait until somebody sleeps."""
        await asyncio.wait_for(self._asleep.wait(), 10)


class Minutes(Sleeps):
    """The sleeps of a loop that may be ended and begun anew: who was ended sleeps no longer."""

    async def __call__(self, seconds: float) -> None:
        try:
            await super().__call__(seconds)
        finally:
            self._asleep.clear()


class Embedded:
    """An unsealed service with everything below the socket. Made by `open`, ended by `close`."""

    def __init__(
        self,
        directory: Path,
        store: SwitchedStore,
        trail: SwitchedTrail,
        *,
        keys_in_memory: int,
        keys_per_uid: int,
        arena_bytes: int,
        configured: bool,
        handlers: dict[Operation[Any, Any], Handler],
        limits: Limits,
        host_time: HostTime,
    ) -> None:
        self.directory = directory
        self.store = store
        self.trail = trail
        self.names = HostNames()
        self.known = Directory(HostAnswers(self.names), lifetime_seconds=0)
        self.now = time.monotonic()
        self.time = host_time
        self.refusals = Refusals()
        self.log = io.StringIO()
        self.arena = Arena(arena_bytes)
        self.arns = Arns(ACCOUNT, REGION)
        self.root = MemoryRoot()
        self.hierarchy = Hierarchy(self.arena, self.root, os.urandom)
        self.versions = Versions(self.arena, self.hierarchy, store, capacity=keys_in_memory)
        self.calendar = Calendar(
            clock=lambda: self.wall_time, uptime=lambda: self.time.uptime, boot_id=self.time.boot_id
        )
        self.timekeeping = timekeeping.Timekeeping(
            self.calendar, store=store, trail=trail, logger=StructuredLogger(self.log)
        )
        self.uses = KeyUses(
            store,
            trail,
            StructuredLogger(self.log),
            clock=lambda: self.wall_time,
            certain_ms=self.calendar.reckoned_ms,
        )
        self.records = KeyRecords(
            store, self.arns, self.known, self.uses, capacity=keys_in_memory, clock=lambda: self.now
        )
        self.seal = Seal(
            store=store,
            trail=trail,
            hierarchy=self.hierarchy,
            versions=self.versions,
            records=self.records,
            arena=self.arena,
            clock=lambda: self.wall_time,
        )
        self.gate = KeyGate()
        self.sleeps = Sleeps()
        self.summary_sleeps = Sleeps()
        self.anchor_sleeps = Sleeps()
        self.checkpoints = Checkpoints(
            trail=trail,
            store=store,
            announce=partial(log_anchor, StructuredLogger(self.log)),
            logger=StructuredLogger(self.log),
            seconds=60.0,
            clock=lambda: self.now,
            sleep=Sleeps(),
        )
        self.token_anchor = TokenAnchor(self.root, store, StructuredLogger(self.log), sleep=self.anchor_sleeps)
        self.unsealing = Unsealing(
            seal=self.seal,
            store=store,
            settings=SettingsRow(account=ACCOUNT, region=REGION, version=1),
            is_new=True,
            root=self.root,
            gate=self.gate,
            settle=self.timekeeping.begin,
            keep=self.uses.keep_if_possible,
            checkpoints=self.checkpoints,
            token_anchor=self.token_anchor,
            trail=trail,
            logger=StructuredLogger(self.log),
            configured=configured,
            sleep=self.sleeps,
        )
        self.seal_requests = seal_requests.SealRequests(
            unsealing=self.unsealing,
            combine=self._combine,
            trail=trail,
            logger=StructuredLogger(self.log),
            pin_seconds=0.3,
        )
        self.accounts = AuditAccounts(
            bytes_per_second=limits.audit_bytes_per_second_per_uid,
            burst_bytes=limits.audit_burst_bytes_per_uid,
            trail=trail,
            logger=StructuredLogger(self.log),
            clock=lambda: self.now,
            wall_clock=lambda: self.wall_time,
            sleep=self.summary_sleeps,
        )
        self.backups = backups.Backups(
            store=store,
            hierarchy=self.hierarchy,
            arena=self.arena,
            arns=self.arns,
            trail=trail,
            gate=self.gate,
            logger=StructuredLogger(self.log),
            snapshot_path=directory / SNAPSHOT_NAME,
            clock=lambda: self.wall_time,
            settles=trail.mode is SyncMode.ALWAYS,
            peer_seconds=0.3,
            kept_seconds=0.3,
        )
        self.own_changes = OwnChanges(
            store=store,
            trail=trail,
            records=self.records,
            arns=self.arns,
            gate=self.gate,
            new_id=RequestIds(os.urandom).next,
        )
        self.default_keys = DefaultKeys(
            store=store,
            versions=self.versions,
            records=self.records,
            arns=self.arns,
            changes=self.own_changes,
            clock=lambda: self.wall_time,
            keys_per_uid=keys_per_uid,
            capacity=keys_in_memory,
        )
        self.rotation = Rotation(
            versions=self.versions,
            changes=self.own_changes,
            clock=lambda: self.wall_time,
            reckoned_ms=self.calendar.reckoned_ms,
        )
        self.care = DefaultKeyCare(
            store=store,
            rotation=self.rotation,
            changes=self.own_changes,
            logger=StructuredLogger(self.log),
            certain_ms=self.calendar.certain_ms,
        )
        self.destruction = Destruction(
            store=store,
            versions=self.versions,
            uses=self.uses,
            changes=self.own_changes,
            logger=StructuredLogger(self.log),
            certain_ms=self.calendar.certain_ms,
        )
        self.gate.on_open(self.uses.begin)
        self.minutes = Minutes()
        self.housekeeping = Housekeeping(
            timekeeping=self.timekeeping,
            calendar=self.calendar,
            store=store,
            rotation=self.rotation,
            destruction=self.destruction,
            minutely=[("uses", self.uses.keep)],
            daily=[self.care.look],
            gate=self.gate,
            logger=StructuredLogger(self.log),
            sleep=self.minutes,
        )
        lookup = KeyLookup(self.records, self.default_keys)
        self.scratch = Scratch(self.arena)
        cipher = KeyCipher(self.versions, BlobCipher(self.arena, os.urandom))
        self.pool = ScriptedPool()
        self.files = files.Files(
            lookup=lookup,
            cipher=cipher,
            arena=self.arena,
            pool=cast("WorkerPool", self.pool),
            trail=trail,
            random=os.urandom,
            settles=trail.mode is SyncMode.ALWAYS,
        )
        symmetric_service = symmetric.Symmetric(lookup=lookup, cipher=cipher, scratch=self.scratch)
        changes = KeyChanges(store, self.records)
        keys_service = keys.Keys(
            store=store,
            versions=self.versions,
            arns=self.arns,
            directory=self.known,
            clock=lambda: self.wall_time,
            changes=changes,
            keys_per_uid=keys_per_uid,
        )
        grants_service = grants.Grants(
            store=store,
            records=self.records,
            arns=self.arns,
            directory=self.known,
            clock=lambda: self.wall_time,
            random=os.urandom,
        )
        administration_service = administration.Administration(
            arns=self.arns,
            arena=self.arena,
            trail=trail,
            audit_key=lambda: administration.AuditKey(self.seal.audit_public_key, self.checkpoints.last),
            audit_sync=trail.mode,
            started=dt.datetime.now(dt.UTC),
            token=lambda: self.root.seen,
            unsealing=self.unsealing,
            findings=[],
            connections=lambda: 3,
            streams=lambda: self.files.streams,
            store_sequence=lambda: store.sequence,
            last_backup=lambda: self.backups.last,
            clock=lambda: self.timekeeping.state,
        )
        self.meter = Meter(OF_REQUESTS)
        metrics_service = metrics.Metrics(
            meters=(self.meter, self.root.meter),
            values={families.STORE_SEQUENCE: lambda: store.sequence},
            store=store,
            gate=self.gate,
            calendar=self.calendar,
            store_seconds=0.3,
        )
        self.feed = EventFeed(
            trail=trail,
            path=directory / EVENTS_NAME,
            projection=Projection(ACCOUNT, REGION),
            logger=StructuredLogger(self.log),
        )
        self.events = events.Events(trail=trail, feed=self.feed, logger=StructuredLogger(self.log))
        self.pending_uses = PendingUses(trail, lambda: self.now)
        request_ids = RequestIds(os.urandom)
        policies_path = self.directory / "policy.d"
        host_policy = HostPolicy.load(policies_path, account=ACCOUNT, names=self.names)
        self.authorizer = Authorizer(host_policy)
        self.host_policies = host_policies.HostPolicies(
            host_policy,
            path=policies_path,
            account=ACCOUNT,
            directory=self.known,
            authorizer=self.authorizer,
            trail=trail,
            logger=StructuredLogger(self.log),
        )
        surroundings = Surroundings(ACCOUNT, lambda: self.wall_time)
        simulation_service = simulation.Simulation(
            authorizer=self.authorizer,
            lookup=lookup,
            refusals=self.refusals,
            subjects=Subjects(self.known, Administrators(frozenset({0}), ("kms-admin",))),
            directory=self.known,
            surroundings=surroundings,
        )
        self.pipeline = Pipeline(
            OPERATIONS,
            {
                **bind(symmetric.HANDLERS, symmetric_service),
                **bind(keys.HANDLERS, keys_service),
                **bind(
                    key_rotation.HANDLERS,
                    key_rotation.KeyRotation(
                        store=store, changes=changes, rotation=self.rotation, latest_ms=self.calendar.latest_ms
                    ),
                ),
                **bind(
                    key_deletion.HANDLERS,
                    key_deletion.KeyDeletion(changes=changes, versions=self.versions, timekeeping=self.timekeeping),
                ),
                **bind(
                    aliases.HANDLERS,
                    aliases.Aliases(
                        store=store,
                        records=self.records,
                        default_keys=self.default_keys,
                        arns=self.arns,
                        clock=lambda: self.wall_time,
                    ),
                ),
                **bind(policies.HANDLERS, policies.Policies(changes=changes, arns=self.arns, directory=self.known)),
                **bind(simulation.HANDLERS, simulation_service),
                **bind(host_policies.HANDLERS, self.host_policies),
                **bind(tags.HANDLERS, tags.Tags(changes=changes)),
                **unsupported.HANDLERS,
                **bind(grants.HANDLERS, grants_service),
                **bind(files.HANDLERS, self.files),
                **bind(administration.HANDLERS, administration_service),
                **bind(metrics.HANDLERS, metrics_service),
                **bind(seal_requests.HANDLERS, self.seal_requests),
                **bind(backups.HANDLERS, self.backups),
                **bind(events.HANDLERS, self.events),
                **bind(
                    credentials.HANDLERS,
                    credentials.Credentials(
                        store=store,
                        unit_keys=self.default_keys,
                        cipher=cipher,
                        arns=self.arns,
                        clock=lambda: self.wall_time,
                    ),
                ),
                **bind(timekeeping.HANDLERS, self.timekeeping),
                **bind(last_usage.HANDLERS, last_usage.LastUsage(uses=self.uses)),
                **handlers,
            },
            authorizer=self.authorizer,
            lookup=lookup,
            trail=trail,
            accounts=self.accounts,
            surroundings=surroundings,
            request_ids=request_ids,
            refusals=self.refusals,
            pending_uses=self.pending_uses,
            scratch=self.scratch,
            gate=self.gate,
            mutations=store,
            logger=StructuredLogger(self.log),
            meter=self.meter,
            timer=time.perf_counter,
            settles=trail.mode is SyncMode.ALWAYS,
        )
        self.delivery = CredentialDelivery(
            store=store,
            records=self.records,
            cipher=cipher,
            arena=self.arena,
            authorizer=self.authorizer,
            accounts=self.accounts,
            gate=self.gate,
            trail=trail,
            logger=StructuredLogger(self.log),
            request_ids=request_ids,
            surroundings=surroundings,
            refusals=self.refusals,
            pending_uses=self.pending_uses,
            seconds=0.3,
            meter=self.meter,
            timer=time.perf_counter,
            settles=trail.mode is SyncMode.ALWAYS,
        )
        self.cipher = cipher

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        sync: SyncMode = SyncMode.OS,
        keys_in_memory: int = 100,
        keys_per_uid: int = 1000,
        arena_bytes: int = ARENA_BYTES,
        configured: bool = True,
        handlers: dict[Operation[Any, Any], Handler] | None = None,
        initialize: bool = True,
        limits: Limits | None = None,
        recovery_key: bytes | None = None,
        host_time: HostTime | None = None,
    ) -> Embedded:
        """A new service under `directory`; `handlers` take the place of some of its own.

        Without `initialize` its store is empty; with a `recovery_key` it can be unsealed by that as well.
        """
        host_time = host_time or HostTime()
        trail = SwitchedTrail.open(directory / "audit.log", sync=sync, clock=lambda: host_time.wall)
        store = cast("SwitchedStore", await SwitchedStore.open(directory / "store.sqlite"))
        service = cls(
            directory,
            store,
            trail,
            keys_in_memory=keys_in_memory,
            keys_per_uid=keys_per_uid,
            arena_bytes=arena_bytes,
            configured=configured,
            handlers=handlers or {},
            limits=limits or Limits(),
            host_time=host_time,
        )
        if initialize:
            await service.seal.initialize(
                SettingsRow(account=ACCOUNT, region=REGION, version=1),
                recovery_key=None if recovery_key is None else memoryview(recovery_key),
            )
            await service.timekeeping.begin()
            service.gate.open()
            # What begins with that has been done, so that commits from now on are those of the test.
            await service.minutes.again()
            await service.uses.keep()
        service.feed.start()
        store.calls.clear()
        return service

    async def close(self) -> None:
        """Close what holds threads and descriptors; whatever was switched works again."""
        for gate in (self.trail.sync_gate, self.pool.gate, self.root.gate, *self.store.gates.values()):
            if gate is not None:
                gate.opened.set()
        self.trail.refuses, self.trail.unsyncable = None, False
        await self.housekeeping.close()
        await self.seal_requests.close()
        await self.backups.close()
        await self.unsealing.close()
        await self.token_anchor.close()
        await self.checkpoints.close()
        await self.pipeline.drain()
        await self.own_changes.drain()
        self.pool.close()
        self.seal.seal()
        await self.feed.close(1.0)
        await self.events.close(1.0)
        self.trail.close()
        await self.store.close()

    def wall_ms(self) -> int:
        """The time on the wall, in milliseconds."""
        return int(self.wall_time * 1000)

    @property
    def wall_time(self) -> float:
        """What the wall clock says, in seconds."""
        return self.time.wall

    @wall_time.setter
    def wall_time(self, seconds: float) -> None:
        """Let time pass until the clock, which nobody sets, says so."""
        self.time.let_pass(seconds - self.time.wall)

    async def _combine(self, shares: Page) -> Page:
        """What a recovery job does, without a process."""
        length = int.from_bytes(shares.view[:LENGTH], "big")
        try:
            made = read_shares(str(shares.view[LENGTH : LENGTH + length], "utf-8")).combine()
        except SharesError as error:
            raise RecoverySharesError(str(error)) from None
        key = Page.create()
        key.view[: len(made)] = made
        return key

    def serve(self, session: Session, frame: bytes | bytearray, batch: Batch) -> Awaitable[Batch] | None:
        """Hand a whole frame to the pipeline."""
        return self.pipeline.serve(session, RequestDecoder().decode(memoryview(frame)[LENGTH_BYTES:]), batch)

    async def reply_to(self, session: Session, operation: Operation[Any, Any], request: msgspec.Struct) -> Batch:
        """The batch that answers one request, as it may be sent."""
        batch = Batch()
        later = self.serve(session, request_frame(operation, request), batch)
        if later is not None:
            return await later
        self.pipeline.finish(batch)
        return batch

    async def ask(self, session: Session, operation: Operation[Any, _ResponseT], request: msgspec.Struct) -> _ResponseT:
        """The response to one request; raises the error that it was answered with."""
        return self.response(await self.reply_to(session, operation, request), operation)

    def response(self, batch: Batch, operation: Operation[Any, _ResponseT]) -> _ResponseT:
        """The response in a batch of one reply; raises the error that it holds."""
        [answer] = answers_in(batch.out)
        if answer.error is not None:
            raise answer.error
        assert answer.result is not None
        return ParamsDecoder(operation.response, max_bytes=1 << 20).decode(memoryview(answer.result))

    async def make_key(self, session: Session = ALICE, **members: Any) -> str:
        """The ARN of a new key."""
        response = await self.ask(session, CREATE_KEY, CreateKeyRequest(**members))
        return response.key_metadata.arn

    def lines(self) -> list[dict[str, Any]]:
        """The trail as it stands in its file, but for its signatures, which are written beside what is tested."""
        lines = map(msgspec.json.decode, self.trail.read(after_seq=0, limit=10_000, max_bytes=1 << 26))
        return [line for line in lines if line["eventName"] != CHECKPOINT]

    def newest(self) -> dict[str, Any]:
        """The last record."""
        return self.lines()[-1]


def kind_is(*kinds: Kind) -> Callable[[Record], bool]:
    """A switch for `SwitchedTrail.refuses`: records of these kinds."""
    return lambda record: record.kind in kinds
