"""Commits: changes, the trace of the mutation and the state row, in one transaction; and whether there may be any.

A commit first reads what its changes take away, and the state row; then it makes the MACs and the next state row, on
the event loop's thread; then it writes. A lock keeps commits apart, and nobody else writes, so what was read still
holds. Nothing that a commit builds on is kept in memory: one that failed, or whose task was cancelled while the
database worked on, leaves the next one nothing to get wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from kmsd.api.errors import IntegrityError, SealedError
from kmsd.store.base import Change, Delete, Insert, Replace, StateReport, StoreUnavailableError
from kmsd.store.database import Database, Query, Step
from kmsd.store.draft import Draft
from kmsd.store.inspection import Inspection, Run
from kmsd.store.kinds import ANCHORS, MUTATIONS, STATE, MutationRow
from kmsd.store.multiset import MultisetHasher
from kmsd.store.rows import StateRow
from kmsd.store.schema import FORGET_ANCHOR, FORGET_STATE, LAST_MUTATION, OLD_MUTATIONS, STATE_ROWS
from kmsd.store.sealing import Record, Sealer
from kmsd.store.state import Tally, is_unadopted, new_store_id
from kmsd.store.transfer import Snapshot

# Whoever looks after a damaged store wants to see some rows; thousands would be a message that nobody reads.
_ROWS_NAMED = 10


class Writer:
    """Writes rows, once it knows that those that are there are the ones it left.

    `random` returns as many random bytes as it is asked for.
    """

    def __init__(
        self,
        database: Database,
        run: Run,
        sealer: Sealer,
        hasher: MultisetHasher,
        inspection: Inspection,
        random: Callable[[int], bytes],
    ) -> None:
        self._database = database
        self._run = run
        self._sealer = sealer
        self._hasher = hasher
        self._inspection = inspection
        self._random = random
        self._lock = asyncio.Lock()
        self._checked = False
        self.sequence = 0

    def seal(self) -> None:
        """Write no more until the rows were checked again."""
        self._checked = False

    @contextlib.asynccontextmanager
    async def idle(self) -> AsyncIterator[None]:
        """While inside, nothing is written; what was begun, and what waited for it, is done before."""
        async with self._lock:
            yield

    async def commit(self, mutation_id: str | None, changes: Sequence[Change]) -> None:
        """Make changes and remember the mutation, if it is one."""
        taken = [change.row for change in changes if isinstance(change, Replace | Delete)]
        async with self._lock:
            state, draft, [[(last,)], old, *found] = await self._begin(
                (LAST_MUTATION, {}), (OLD_MUTATIONS, {}), *map(Draft.query, taken)
            )
            for row, rows in zip(taken, found, strict=True):
                draft.tell(row, rows)
            # The mutation comes first: a commit that is repeated fails because of itself, not of what it did before.
            if mutation_id is not None:
                draft.change(Insert(MutationRow(mutation_id=mutation_id, version=1)), number=(last or 0) + 1)
                for columns in old:
                    draft.forget(MUTATIONS, columns)
            for change in changes:
                draft.change(change)
            await self._finish(state, draft)

    async def forget(self, mutation_ids: Sequence[str]) -> None:
        """Remember these mutations no longer; unknown ones are ignored."""
        mutations = [MutationRow(mutation_id=one, version=1) for one in dict.fromkeys(mutation_ids)]
        async with self._lock:
            state, draft, found = await self._begin(*map(Draft.query, mutations))
            for rows in found:
                for columns in rows:
                    draft.forget(MUTATIONS, columns)
            await self._finish(state, draft)

    async def snapshot(self, path: Path) -> Snapshot:
        """Return a copy of all rows as the last commit left them."""
        async with self._lock:
            state, _, _ = await self._begin()
            if state is None:
                raise StoreUnavailableError(f"{self._database.name} is empty")
            return Snapshot(await self._run(self._database.copy, path), state)

    async def check(self) -> StateReport:
        """Compare the rows with the state row."""
        async with self._lock:
            self._checked = False
            tally = await self._inspection.tally()
            report = self._report(tally, await self._run(self._database.rows, *STATE_ROWS))
            if report.findings:
                named = await self._inspection.refusals(_ROWS_NAMED)
                new = (one for one in named if one not in report.findings)
                return dataclasses.replace(report, findings=(*report.findings, *new))
            self.sequence = report.sequence
            self._checked = not report.adopted
            return report

    async def accept(self, minimum_sequence: int) -> None:
        """Make the state row anew from the rows as they are."""
        async with self._lock:
            self._checked = False
            tally = await self._inspection.tally()
            tally.clear(ANCHORS.table)
            try:
                state = self._state(await self._run(self._database.rows, *STATE_ROWS))
            except IntegrityError:
                state = None
            sequence = max(minimum_sequence, self.sequence, state.sequence if state else 0)
            draft = Draft(self._sealer, tally)
            draft.steps.append(Step(FORGET_STATE, {}, STATE.table, ""))
            # What was accepted may be the trail as it is, without what the anchor remembers.
            draft.steps.append(Step(FORGET_ANCHOR, {}, ANCHORS.table, ""))
            await self._write(draft, store_id=state.store_id if state else None, sequence=sequence + 1, version=1)
            self._checked = True

    def _report(self, tally: Tally, records: Sequence[tuple[Any, ...]]) -> StateReport:
        if len(records) == 1 and is_unadopted(Record.from_columns(STATE, records[0])):
            return StateReport((), None, 0, adopted=True)
        try:
            state = self._state(records)
        except IntegrityError as error:
            return StateReport((str(error),), None, 0, adopted=False)
        if state is None:
            missing = ("the state row is missing",) if any(tally.counts.values()) else ()
            return StateReport(missing, None, 0, adopted=False)
        findings = tally.differences(Tally.of(state, self._hasher))
        return StateReport(tuple(findings), state.store_id, state.sequence, adopted=False)

    def _state(self, records: Sequence[tuple[Any, ...]]) -> StateRow | None:
        """Return the state row; none in a new store. Raises IntegrityError."""
        if not records:
            if self.sequence:
                raise IntegrityError("the state row is gone")
            return None
        if len(records) > 1:
            raise IntegrityError(f"there are {len(records)} state rows instead of one")
        state = self._sealer.row(Record.from_columns(STATE, records[0]))
        if state.sequence < self.sequence:
            raise IntegrityError(f"the state row is that of commit {state.sequence}, but {self.sequence} was made")
        return state

    async def _begin(self, *queries: Query) -> tuple[StateRow | None, Draft, list[list[tuple[Any, ...]]]]:
        if self._sealer.sealed:
            raise SealedError("the store is sealed; an administrator has to unseal it")
        if not self._checked:
            raise IntegrityError("the rows of the store were not found to be those that it was left with")
        records, *found = await self._run(self._database.rows_of_each, [STATE_ROWS, *queries])
        state = self._state(records)
        return state, Draft(self._sealer, Tally.of(state, self._hasher) if state else Tally(self._hasher)), found

    async def _finish(self, state: StateRow | None, draft: Draft) -> None:
        if state is None:
            await self._write(draft, store_id=None, sequence=1, version=1)
        else:
            await self._write(draft, store_id=state.store_id, sequence=state.sequence + 1, version=state.version + 1)

    async def _write(self, draft: Draft, *, store_id: str | None, sequence: int, version: int) -> None:
        """Do all steps, and write the state row with a new one for an old one or, in version 1, as the first."""
        store_id = store_id or new_store_id(self._random)
        row = draft.tally.row(store_id=store_id, sequence=sequence, version=version, random=self._random)
        draft.conclude(Insert(row) if version == 1 else Replace(row))
        await self._run(self._database.apply, draft.steps)
        self.sequence = sequence
