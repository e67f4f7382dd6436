"""Everything that decides when there are keys, and that the records tell of them truthfully."""

from __future__ import annotations

import os
import time
from functools import partial

from kmsd.audit.writer import SyncMode, Trail
from kmsd.material.hierarchy import Hierarchy
from kmsd.material.versions import Versions
from kmsd.recovery.jobs import RecoveryJobs
from kmsd.server.foundation import Foundation
from kmsd.service.administration import AuditKey
from kmsd.service.backups import Backups
from kmsd.service.calendar import Calendar
from kmsd.service.checkpoints import Checkpoints, announce_nowhere, log_anchor
from kmsd.service.default_key_care import DefaultKeyCare
from kmsd.service.destruction import Destruction
from kmsd.service.gate import Gate
from kmsd.service.housekeeping import Housekeeping
from kmsd.service.identifiers import Arns
from kmsd.service.own_changes import OwnChanges
from kmsd.service.records import KeyRecords
from kmsd.service.request_ids import RequestIds
from kmsd.service.rotation import Rotation
from kmsd.service.seal import Means, Seal
from kmsd.service.seal_requests import SealRequests
from kmsd.service.settling import Settling
from kmsd.service.timekeeping import Timekeeping
from kmsd.service.token_anchor import TokenAnchor
from kmsd.service.token_watch import TokenWatch
from kmsd.service.unsealing import Unsealing
from kmsd.service.uses import KeyUses
from kmsd.store.rows import SettingsRow
from kmsd.store.sql import SqlStore
from kmsd.store.transfer import SNAPSHOT_NAME


class Custody:
    """Hierarchy, material and key records, and who brings them into memory and takes them away."""

    def __init__(
        self, foundation: Foundation, store: SqlStore, trail: Trail, settings: SettingsRow, *, is_new: bool
    ) -> None:
        config, arena, logger = foundation.config, foundation.arena, foundation.logger
        arns = Arns(settings.account, settings.region)
        self.hierarchy = Hierarchy(arena, foundation.root, os.urandom)
        self.versions = Versions(arena, self.hierarchy, store, capacity=config.limits.keys_in_memory)
        self.calendar = Calendar(clock=foundation.clock, uptime=foundation.uptime, boot_id=foundation.boot_id)
        self.timekeeping = Timekeeping(self.calendar, store=store, trail=trail, logger=logger)
        self.uses = KeyUses(store, trail, logger, clock=foundation.clock, certain_ms=self.calendar.reckoned_ms)
        self.records = KeyRecords(
            store,
            arns,
            foundation.directory,
            self.uses,
            capacity=config.limits.keys_in_memory,
            clock=time.monotonic,
        )
        self.gate = Gate()
        self._settling = Settling(store, trail)
        self.own_changes = OwnChanges(
            store=store,
            trail=trail,
            records=self.records,
            arns=arns,
            gate=self.gate,
            new_id=RequestIds(os.urandom).next,
        )
        self.rotation = Rotation(
            versions=self.versions,
            changes=self.own_changes,
            clock=foundation.clock,
            reckoned_ms=self.calendar.reckoned_ms,
        )
        care = DefaultKeyCare(
            store=store,
            rotation=self.rotation,
            changes=self.own_changes,
            logger=logger,
            certain_ms=self.calendar.certain_ms,
        )
        # Before the first of the uses that housekeeping is to store.
        self.gate.on_open(self.uses.begin)
        self._housekeeping = Housekeeping(
            timekeeping=self.timekeeping,
            calendar=self.calendar,
            store=store,
            rotation=self.rotation,
            destruction=Destruction(
                store=store,
                versions=self.versions,
                uses=self.uses,
                changes=self.own_changes,
                logger=logger,
                certain_ms=self.calendar.certain_ms,
            ),
            minutely=[("uses", self.uses.keep)],
            daily=[care.look],
            gate=self.gate,
            logger=logger,
            sleep=foundation.sleep,
        )
        self.backups = Backups(
            store=store,
            hierarchy=self.hierarchy,
            arena=arena,
            arns=arns,
            trail=trail,
            gate=self.gate,
            logger=logger,
            snapshot_path=foundation.store_path.with_name(SNAPSHOT_NAME),
            clock=foundation.clock,
            settles=trail.mode is SyncMode.ALWAYS,
        )
        self.checkpoints = Checkpoints(
            trail=trail,
            store=store,
            announce=partial(log_anchor, logger) if foundation.log_is_kept else announce_nowhere,
            logger=logger,
            seconds=config.audit.checkpoint_seconds,
            clock=time.monotonic,
            sleep=foundation.sleep,
        )
        self._token_anchor = TokenAnchor(foundation.root, store, logger, sleep=foundation.sleep)
        self._seal = Seal(
            store=store,
            trail=trail,
            hierarchy=self.hierarchy,
            versions=self.versions,
            records=self.records,
            arena=arena,
            clock=foundation.clock,
        )
        self.unsealing = Unsealing(
            seal=self._seal,
            store=store,
            settings=settings,
            is_new=is_new,
            root=foundation.root,
            gate=self.gate,
            settle=self._settle,
            keep=self.uses.keep_if_possible,
            checkpoints=self.checkpoints,
            token_anchor=self._token_anchor,
            trail=trail,
            logger=logger,
            configured=foundation.pin_configured,
            recovery_key=foundation.recovery_key,
            sleep=foundation.sleep,
        )
        self._watch = TokenWatch(
            root=foundation.root,
            unsealing=self.unsealing,
            trail=trail,
            logger=logger,
            check_seconds=config.hsm.check_seconds,
            seals=config.hsm.when_lost == "seal",
            sleep=foundation.sleep,
        )
        self.requests = SealRequests(
            unsealing=self.unsealing, combine=RecoveryJobs(foundation.zygote).combine, trail=trail, logger=logger
        )

    def audit_key(self) -> AuditKey:
        """Return what vouches for the trail."""
        return AuditKey(self._seal.audit_public_key, self.checkpoints.last)

    async def open(self, means: Means, *, serves_sealed: bool) -> None:
        """Bring the keys into memory, as `Unsealing.start` does."""
        await self.unsealing.start(means, serves_sealed=serves_sealed)

    async def _settle(self) -> None:
        """Bring what depends on the keys up to date, once they are there."""
        await self._settling.settle()
        await self.timekeeping.begin()
        await self.backups.remember()

    def watch(self) -> None:
        """Begin to look after the token, and after the trail's signatures and files."""
        self._watch.start()
        self.checkpoints.start()

    async def end(self) -> None:
        """Decide nothing more; what is under way ends."""
        await self._watch.close()
        await self._housekeeping.close()
        await self.requests.close()
        await self.backups.close()
        await self.unsealing.close()
        await self._token_anchor.close()
        await self.checkpoints.close()

    def seal(self) -> None:
        """Wipe every key from memory."""
        self._seal.seal()
