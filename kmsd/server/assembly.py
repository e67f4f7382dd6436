"""Builds the service out of its parts, in the order in which they depend on each other."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import random
import socket
import time
from pathlib import Path

from kmsd.access.host import HostPolicy
from kmsd.api import OPERATIONS
from kmsd.audit.retention import Retention
from kmsd.audit.rotation import Rotation
from kmsd.audit.writer import SyncMode, Trail
from kmsd.config import digest
from kmsd.envelope.pool import WorkerPool
from kmsd.identity.callers import Callers
from kmsd.identity.peer import peer_of
from kmsd.identity.process import process_of
from kmsd.material.ciphertext import BlobCipher
from kmsd.processes.confinement import missing
from kmsd.server.activation import Sockets
from kmsd.server.announcing import Announcing
from kmsd.server.credential_socket import CredentialListener
from kmsd.server.custody import Custody
from kmsd.server.deciding import Deciding
from kmsd.server.foundation import Foundation
from kmsd.server.limits import Shares
from kmsd.server.listener import Listener, actor_of
from kmsd.server.managing import Managing
from kmsd.server.measuring import Measuring
from kmsd.service import (
    administration,
    backups,
    credentials,
    files,
    grants,
    last_usage,
    seal_requests,
    symmetric,
    timekeeping,
)
from kmsd.service.audit_accounts import AuditAccounts
from kmsd.service.call import Session
from kmsd.service.credential_delivery import CredentialDelivery
from kmsd.service.default_keys import DefaultKeys
from kmsd.service.grace import within
from kmsd.service.host_policies import read_host_policy
from kmsd.service.identifiers import Arns
from kmsd.service.key_cipher import KeyCipher
from kmsd.service.key_lookup import KeyLookup
from kmsd.service.pipeline import Pipeline
from kmsd.service.request_ids import RequestIds
from kmsd.service.scratch import Scratch
from kmsd.service.seal import CONFIGURED, Means
from kmsd.service.table import bind
from kmsd.service.unsealing import system_record
from kmsd.store.base import StoreFormatError
from kmsd.store.rows import SettingsRow
from kmsd.store.sql import SqlStore

# AWS account ids have 12 digits, and the first is never 0 here so that no reader takes them for a number.
_ACCOUNTS = (100_000_000_000, 999_999_999_999)
_DAY_SECONDS = 86_400
# A credential is one record of the store and a key; systemd gives a unit 90 seconds to start.
_CREDENTIAL_SECONDS = 5.0


class Service:
    """Everything that serves, from `open` to `close`."""

    def __init__(
        self,
        foundation: Foundation,
        store: SqlStore,
        trail: Trail,
        settings: SettingsRow,
        host_policy: HostPolicy,
        *,
        is_new: bool,
    ) -> None:
        config = foundation.config
        self._foundation = foundation
        self._store = store
        self._trail = trail
        directory = foundation.directory
        self._callers = Callers(directory, foundation.processes, foundation.administrators)
        arena = foundation.arena
        arns = Arns(settings.account, settings.region)
        self._custody = Custody(foundation, store, trail, settings, is_new=is_new)
        records = self._custody.records
        default_keys = DefaultKeys(
            store=store,
            versions=self._custody.versions,
            records=records,
            arns=arns,
            changes=self._custody.own_changes,
            clock=foundation.clock,
            keys_per_uid=config.limits.keys_per_uid,
            capacity=config.limits.keys_in_memory,
        )
        lookup = KeyLookup(records, default_keys)
        self._deciding = Deciding(foundation, trail, settings, lookup, host_policy)
        self._announcing = Announcing(foundation, trail, settings)
        self._digests = {"configuration": digest(config), "hostPolicy": self._deciding.digest}
        cipher = KeyCipher(self._custody.versions, BlobCipher(arena, os.urandom))
        scratch = Scratch(arena)
        cores = os.cpu_count() or 1
        streams = config.limits.file_streams_per_uid
        # A uid has a quarter of the places, so on a small machine there are more of them than cores: `kms encrypt - |
        # kms decrypt -` needs two. A place costs nothing while nobody takes it.
        workers = config.limits.file_workers or max(cores, 4 * streams)
        self._pool = WorkerPool(foundation.zygote, size=workers, per_uid=streams, spare=min(workers, cores))
        self._files = files.Files(
            lookup=lookup,
            cipher=cipher,
            arena=arena,
            pool=self._pool,
            trail=trail,
            random=os.urandom,
            settles=trail.mode is SyncMode.ALWAYS,
        )
        self._shares = Shares(config.limits, time.monotonic)
        symmetric_service = symmetric.Symmetric(lookup=lookup, cipher=cipher, scratch=scratch)
        managing = Managing(foundation, store, arns, self._custody, default_keys)
        grants_service = grants.Grants(
            store=store, records=records, arns=arns, directory=directory, clock=foundation.clock, random=os.urandom
        )
        administration_service = administration.Administration(
            arns=arns,
            arena=arena,
            trail=trail,
            audit_key=self._custody.audit_key,
            audit_sync=config.audit.sync,
            started=dt.datetime.now(dt.UTC),
            token=lambda: foundation.root.seen,
            unsealing=self._custody.unsealing,
            findings=foundation.findings,
            connections=lambda: self._shares.connections,
            streams=lambda: self._files.streams,
            store_sequence=lambda: store.sequence,
            last_backup=lambda: self._custody.backups.last,
            clock=lambda: self._custody.timekeeping.state,
        )
        self._accounts = AuditAccounts(
            bytes_per_second=config.limits.audit_bytes_per_second_per_uid,
            burst_bytes=config.limits.audit_burst_bytes_per_uid,
            trail=trail,
            logger=foundation.logger,
            clock=time.monotonic,
            wall_clock=foundation.clock,
        )
        credentials_service = credentials.Credentials(
            store=store,
            unit_keys=default_keys,
            cipher=cipher,
            arns=arns,
            clock=foundation.clock,
        )
        request_ids = RequestIds(os.urandom)
        measuring = Measuring(
            foundation,
            store,
            trail,
            self._custody,
            shares=self._shares,
            accounts=self._accounts,
            pool=self._pool,
            withdrawn=lambda: self._pipeline.withdrawn,
            announcing=self._announcing,
        )
        self._pipeline = Pipeline(
            OPERATIONS,
            {
                **bind(symmetric.HANDLERS, symmetric_service),
                **managing.handlers,
                **self._deciding.handlers,
                **self._announcing.handlers,
                **bind(grants.HANDLERS, grants_service),
                **bind(files.HANDLERS, self._files),
                **bind(administration.HANDLERS, administration_service),
                **bind(seal_requests.HANDLERS, self._custody.requests),
                **bind(backups.HANDLERS, self._custody.backups),
                **bind(credentials.HANDLERS, credentials_service),
                **bind(timekeeping.HANDLERS, self._custody.timekeeping),
                **bind(last_usage.HANDLERS, last_usage.LastUsage(uses=self._custody.uses)),
                **measuring.handlers,
            },
            authorizer=self._deciding.authorizer,
            lookup=lookup,
            trail=trail,
            accounts=self._accounts,
            surroundings=self._deciding.surroundings,
            request_ids=request_ids,
            refusals=self._deciding.refusals,
            pending_uses=self._announcing.pending_uses,
            scratch=scratch,
            gate=self._custody.gate,
            mutations=store,
            logger=foundation.logger,
            meter=measuring.requests,
            timer=time.perf_counter,
            settles=trail.mode is SyncMode.ALWAYS,
        )
        self._delivery = CredentialDelivery(
            store=store,
            records=records,
            cipher=cipher,
            arena=arena,
            authorizer=self._deciding.authorizer,
            accounts=self._accounts,
            gate=self._custody.gate,
            trail=trail,
            logger=foundation.logger,
            request_ids=request_ids,
            surroundings=self._deciding.surroundings,
            refusals=self._deciding.refusals,
            pending_uses=self._announcing.pending_uses,
            seconds=_CREDENTIAL_SECONDS,
            meter=measuring.requests,
            timer=time.perf_counter,
            settles=trail.mode is SyncMode.ALWAYS,
        )
        self._listener: Listener | None = None
        self._credential_listener: CredentialListener | None = None

    @classmethod
    async def open(cls, foundation: Foundation) -> Service:
        """Open store and trail; the service is sealed and accepts nobody yet."""
        config = foundation.config
        if not foundation.founds and not foundation.store_path.exists():
            raise _no_store(foundation.store_path)  # before a file is made in its place
        async with contextlib.AsyncExitStack() as opened:
            trail = Trail.open(
                foundation.audit_path,
                sync=SyncMode(config.audit.sync),
                clock=foundation.clock,
                rotation=Rotation(config.audit.rotate_bytes, config.audit.rotate_days * _DAY_SECONDS),
                retention=Retention(config.audit.keep_days * _DAY_SECONDS, config.audit.keep_bytes),
                checkpoint_records=config.audit.checkpoint_records,
            )
            opened.callback(trail.close)
            store = await SqlStore.open(foundation.store_path)
            opened.push_async_callback(store.close)
            settings = await store.settings()
            is_new = settings is None
            if settings is None:
                if trail.store_sequence:
                    raise StoreFormatError(
                        f"{foundation.store_path} is empty, but {foundation.audit_path} tells of a store that was in "
                        "use: put the store back (kmsd restore), or move the audit trail away to begin anew"
                    )
                if not foundation.founds:
                    raise _no_store(foundation.store_path)
                # An account id is a name and no secret, but two hosts should not draw the same one.
                account = random.SystemRandom().randint(*_ACCOUNTS)
                settings = SettingsRow(account=str(account), region=config.region, version=1)
            host_policy = await read_host_policy(
                foundation.host_policy, account=settings.account, directory=foundation.directory
            )
            service = cls(foundation, store, trail, settings, host_policy, is_new=is_new)
            opened.pop_all()
            return service

    async def reload_host_policy(self) -> str:
        """Read the host policy anew and return its digest.

        Raises HostPolicyError when it is not valid, AuditUnavailableError when it cannot be recorded; the old one
        holds then.
        """
        return (await self._deciding.host_policies.reload()).digest

    @property
    def host_policy_fault(self) -> str | None:
        """Why the host policy that was read last is not in force, None if it is."""
        return self._deciding.host_policies.fault

    @property
    def sealed(self) -> bool:
        """Whether it serves only what needs no keys."""
        return self._custody.unsealing.sealed

    async def ping_store(self) -> None:
        """Return when the store's thread has answered; raises a StoreError."""
        await self._store.ping()

    async def unseal(self, means: Means = CONFIGURED, *, serves_sealed: bool = False) -> None:
        """Bring the keys into memory, making the first ones in an empty store, and settle what was left open.

        With `serves_sealed` a failure is on record and does not prevent the start; else a KmsError is raised.
        """
        await self._custody.open(means, serves_sealed=serves_sealed)

    async def listen(self, sockets: Sockets) -> None:
        """Begin to serve on listening sockets."""
        foundation = self._foundation
        absent = [f"{one.process}: {one.protection}" for one in missing(foundation.findings)]
        self._trail.append([system_record("Start", **self._digests, missingProtections=absent)])
        self._listener = Listener(
            asyncio.get_running_loop(),
            sockets.clients,
            pipeline=self._pipeline,
            shares=self._shares,
            callers=self._callers,
            admit=foundation.admit,
            connections_per_uid=foundation.config.limits.connections_per_uid,
            max_body=max(operation.frame_bytes for operation in OPERATIONS),
            logger=foundation.logger,
        )
        await self._pool.fill()
        self._listener.start()
        if sockets.credentials is not None:
            self._credential_listener = CredentialListener(
                asyncio.get_running_loop(),
                sockets.credentials,
                delivery=self._delivery,
                session_of=self._session_of,
                logger=foundation.logger,
            )
            self._credential_listener.start()
        self._custody.watch()
        self._announcing.start()
        self._accounts.start()
        self._deciding.host_policies.start()

    async def _session_of(self, sock: socket.socket) -> Session:
        peer = peer_of(sock)
        with process_of(sock, peer.pid) or contextlib.nullcontext() as process:
            caller = await self._callers.caller_of(peer, process)
        return Session(caller, actor_of(caller))

    async def close(self) -> None:
        """Finish what is under way within the configured grace, record the stop, wipe the keys."""
        grace = self._foundation.config.shutdown_grace_seconds
        self._pipeline.stopping = True
        self._deciding.host_policies.stop()
        await self._custody.end()
        if self._credential_listener is not None:
            await self._credential_listener.stop(grace)
        if self._listener is not None:
            # First, so that nobody is left who asks a daemon that stops, again and again until he gives up.
            await self._listener.stop(grace)
            await self._files.drain(grace)
        # A store may hang: its intents then stay open, and the next start settles them.
        async with within(grace):
            await self._drain()
        await self._pool.close()
        await self._files.drain(grace)
        try:
            self._accounts.close()
            async with within(grace):
                await self._custody.uses.keep_if_possible()
            self._trail.append([system_record("Stop", storeSequence=self._store.sequence)])
            async with within(grace):
                await self._custody.checkpoints.sign_if_possible()
        finally:
            # Whatever becomes of the record, no key outlives the service.
            self._custody.seal()
            await self._announcing.close()
            await self._store.close()
            self._trail.close()

    async def _drain(self) -> None:
        """Wait until every change under way has its outcome in the trail."""
        await self._pipeline.drain()
        await self._custody.own_changes.drain()


def _no_store(path: Path) -> StoreFormatError:
    return StoreFormatError(
        f"{path} is missing or was never finished: put it back, restore a backup (kmsd restore), or set up a new host "
        "(kmsd init)"
    )
