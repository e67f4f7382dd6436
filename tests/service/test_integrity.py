"""Store, trail and token remember something of each other, so that none is put back or cut off unseen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmsd.api.administration import GET_AUDIT_ANCHOR, GetAuditAnchorRequest
from kmsd.api.errors import AuditUnavailableError, IntegrityError, StorageError
from kmsd.audit.chain import Head, format_time, link
from kmsd.audit.checkpoint import CHECKPOINT, Checkpoint, check
from kmsd.audit.files import rotated_files, rotated_path
from kmsd.audit.repair import Repair, begin_anew, survey
from kmsd.audit.rotation import Rotation
from kmsd.audit.standing import Standing
from kmsd.service.seal import CONFIGURED, Means
from kmsd.service.token_anchor import KEEP_SECONDS
from kmsd.service.unsealing import system_record
from kmsd.store.base import RowChangedError, StoreUnavailableError
from kmsd.store.kinds import MUTATIONS
from kmsd.store.schema import STATEMENTS
from kmsd.store.sql import SqlStore
from tests.support.embedded import ALICE, ROOT, Embedded, Gate

ACCEPTING = Means(accepts_changes=True)


class Host:
    """Where the service is started again and again, on one store and one trail, with one token."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._anchors: dict[str, int] = {}
        self._service: Embedded | None = None

    async def start(self, means: Means = CONFIGURED) -> Embedded:
        """Stop what runs, and start anew."""
        service = await self.open()
        await service.unsealing.unseal(means, service.unsealing._record_success)
        await service.anchor_sleeps.again()  # the token remembers
        return service

    def forget_token(self) -> None:
        """Take a token that remembers nothing."""
        self._anchors.clear()

    async def open(self) -> Embedded:
        """Stop what runs, and open anew; sealed."""
        await self.stop()
        self._service = service = await Embedded.open(self.directory, initialize=False)
        service.root.anchors = self._anchors
        return service

    async def refusal(self) -> str:
        """Why a start is refused; nothing is in memory then."""
        with pytest.raises(IntegrityError) as refused:
            await self.start()
        assert self._service is not None
        assert self._service.seal.sealed
        assert self._service.trail.signer is None
        assert self._service.unsealing.failure == refused.value.message
        await self.stop()
        return refused.value.message

    async def stop(self) -> dict[str, bytes]:
        """Stop what runs as a daemon stops, and return its files as they are then."""
        service, self._service = self._service, None
        if service is not None:
            if not service.seal.sealed:
                await service.checkpoints.sign()
            await service.close()
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    yield host
    await host.stop()


def put_back(directory: Path, files: dict[str, bytes], pattern: str) -> None:
    """Take a part of the state back to what it was."""
    for path in directory.glob(pattern):
        path.unlink()
    for name, content in files.items():
        if (directory / name).match(pattern):
            (directory / name).write_bytes(content)


async def test_an_untouched_state_is_accepted(host: Host) -> None:
    """Whatever happens between starts, no start of an honest history is refused."""
    for _ in range(3):
        service = await host.start()
        await service.make_key()


async def test_an_older_store_is_refused(host: Host, tmp_path: Path) -> None:
    """The trail tells how many changes the store had counted."""
    await (await host.start()).make_key()
    before = await host.stop()
    await (await host.start()).make_key()
    await host.stop()
    put_back(tmp_path, before, "store.sqlite*")

    told = await host.refusal()

    assert "the store is older than its audit trail" in told
    assert "kms unseal --accept-changes" in told


async def test_a_trail_that_was_cut_off_is_refused(host: Host, tmp_path: Path) -> None:
    """The store remembers the last checkpoint; the trail before it is as whole as it can be."""
    await (await host.start()).make_key()
    before = await host.stop()
    await (await host.start()).make_key()
    await host.stop()
    put_back(tmp_path, before, "audit.log*")

    assert "the audit trail does not hold record" in await host.refusal()


async def test_a_trail_that_was_begun_anew_is_refused(host: Host, tmp_path: Path) -> None:
    """Moving the trail away is a way to get rid of it."""
    await (await host.start()).make_key()
    await host.stop()
    (tmp_path / "audit.log").unlink()

    assert "another one was put in its place" in await host.refusal()


async def test_store_and_trail_put_back_together_are_refused(host: Host, tmp_path: Path) -> None:
    """The token remembers how far the store was at the last unseal."""
    await (await host.start()).make_key()
    before = await host.stop()
    await (await host.start()).make_key()
    await host.start()
    await host.stop()
    put_back(tmp_path, before, "*")

    assert "the store is older than the token remembers" in await host.refusal()


async def test_a_row_put_back_is_refused_whatever_the_trail_tells(host: Host, tmp_path: Path) -> None:
    """What the store says of itself is among the findings."""
    await (await host.start()).make_key()
    await host.stop()
    store = await SqlStore.open(tmp_path / "store.sqlite")
    store._database._execute("DELETE FROM keys")
    await store.close()

    assert "keys: 1 row is missing" in await host.refusal()


async def test_a_store_made_to_look_like_one_from_before_state_rows_is_refused(host: Host, tmp_path: Path) -> None:
    """What an upgrade leaves in the place of a state row is no secret; a store that was begun with one says so."""
    await (await host.start()).make_key()
    await host.stop()
    store = await SqlStore.open(tmp_path / "store.sqlite")
    for statement in (
        "UPDATE state SET version = 0, content = x'', mac = x''",
        "DELETE FROM keys",
        "DELETE FROM anchors",
        "DELETE FROM secrets WHERE name = 'audit'",
    ):
        store._database._execute(statement)
    await store.close()
    (tmp_path / "audit.log").unlink()

    assert "the store lacks the state row that it had" in await host.refusal()


async def test_nothing_is_signed_before_the_records_were_compared(host: Host, tmp_path: Path) -> None:
    """A signature that comes while they are would vouch for whatever somebody put there."""
    await (await host.start()).make_key()
    await host.stop()
    service = await host.open()
    service.store.gates["check_state"] = gate = Gate()
    unsealing = asyncio.ensure_future(service.unsealing.unseal(CONFIGURED, service.unsealing._record_success))
    await gate.arrived.wait()

    assert service.trail.checkpoint() is None
    gate.opened.set()
    assert await unsealing
    await service.checkpoints.sign()
    assert service.checkpoints.last is not None


async def test_a_key_that_is_not_kept_signs_nothing(host: Host) -> None:
    """What it had signed, nobody could verify by the next one."""
    service = await host.open()
    service.store.gates["commit"] = gate = Gate()
    service.store.faults["commit"] = StoreUnavailableError("no space")
    unsealing = asyncio.ensure_future(service.unsealing.unseal(CONFIGURED, service.unsealing._record_success))
    await gate.arrived.wait()

    assert service.trail.checkpoint() is None
    gate.opened.set()
    with pytest.raises(StorageError):
        await unsealing
    assert service.seal.audit_public_key is None


async def test_an_acceptance_is_on_record_before_it_counts(host: Host, tmp_path: Path) -> None:
    """A full disk, or a kill between the two, leaves nothing that was accepted and that the trail does not tell of."""
    await (await host.start()).make_key()
    before = await host.stop()
    await (await host.start()).make_key()
    await host.stop()
    put_back(tmp_path, before, "store.sqlite*")
    service = await host.open()
    service.trail.refuses = lambda record: record.event_name == "AcceptChanges"
    with pytest.raises(AuditUnavailableError):
        await service.unsealing.unseal(ACCEPTING, service.unsealing._record_success)

    assert "the store is older than its audit trail" in await host.refusal()


def forge_repair(directory: Path) -> None:
    """Begin a new chain behind what there is, as `kmsd audit-repair` would where the trail was broken."""
    trail = directory / "audit.log"
    found = survey(trail.read_bytes().splitlines(keepends=True))
    assert found.last is not None
    trail.rename(rotated_path(trail, 1, found.last.seq))
    repair = Repair("audit.log.broken-1", "audit.log", 1, "0" * 64, found.last.seq, found.last.digest, "broken")
    trail.write_bytes(b"".join(begin_anew(repair, found, format_time(time.time()))))


def forge_mark(directory: Path, *, store_sequence: int | None = None) -> int:
    """Append a mark that continues nothing; return the number of the last record before it."""
    trail = directory / "audit.log"
    found = survey(trail.read_bytes().splitlines(keepends=True))
    mark = Standing(found.open_intents, store_sequence or found.store_sequence).mark()
    assert found.last is not None
    assert mark is not None
    with trail.open("ab") as file:
        file.writelines(link(Head(found.last.seq + 5, "1" * 64), [mark], format_time(time.time()))[0])
    return found.last.seq


@pytest.mark.parametrize("rotated_again", [False, True])
async def test_a_repair_that_nobody_accepted_is_refused(host: Host, tmp_path: Path, *, rotated_again: bool) -> None:
    """It would explain to whoever verifies why the trail lacks what anchors in the journal tell of."""
    await (await host.start()).make_key()
    await host.stop()
    forge_repair(tmp_path)
    if rotated_again:
        service = await host.open()
        service.trail._rotation = Rotation(max_bytes=1)
        await service.trail.maintain()
        assert len(rotated_files(tmp_path / "audit.log")) == 2

    assert "the audit trail behind record" in await host.refusal()
    await host.start(ACCEPTING)
    await host.start()


async def test_what_is_behind_the_last_mark_is_not_all_that_is_looked_at(host: Host, tmp_path: Path) -> None:
    """A mark may stand anywhere; the chain has to be whole from the checkpoint that the store remembers."""
    await (await host.start()).make_key()
    await host.stop()
    last = forge_mark(tmp_path)

    assert f"the audit trail behind record {last}" in await host.refusal()


async def test_an_administrator_accepts_on_record(host: Host, tmp_path: Path) -> None:
    """Then the memories are made to agree, and the next start asks nobody."""
    await (await host.start()).make_key()
    before = await host.stop()
    kept = await (await host.start()).make_key()
    await host.stop()
    put_back(tmp_path, before, "store.sqlite*")
    (tmp_path / "audit.log").unlink()
    await host.refusal()

    service = await host.start(ACCEPTING)
    assert kept not in {row.key_id for row in await service.store.keys(after=None, limit=10)}
    [accepted] = [line for line in service.lines() if line["eventName"] == "AcceptChanges"]
    assert any("the audit trail does not hold" in one for one in accepted["additionalEventData"]["accepted"])

    await (await host.start()).make_key()


async def test_nothing_is_accepted_where_nothing_differs(host: Host) -> None:
    """To be ready to accept is no event."""
    await host.start()
    service = await host.start(ACCEPTING)

    assert not [line for line in service.lines() if line["eventName"] == "AcceptChanges"]


async def test_the_anchor_is_the_last_checkpoint_and_verifies(host: Host, tmp_path: Path) -> None:
    """Who may read the trail is told the public key, and what to keep elsewhere."""
    service = await host.start()
    await service.make_key()
    await service.checkpoints.sign()

    told = await service.ask(ROOT, GET_AUDIT_ANCHOR, GetAuditAnchorRequest())

    assert told.public_key is not None
    assert told.anchor is not None
    anchor = Checkpoint(
        told.anchor.seq, told.anchor.prev, told.anchor.event_time, told.anchor.key_id, told.anchor.signature
    )
    check(anchor, bytes(told.public_key))
    row = await service.store.anchor()
    assert row is not None
    assert (row.seq, row.signature) == (anchor.seq, anchor.signature)
    assert f'"seq": {anchor.seq}' in service.log.getvalue()


async def test_a_checkpoint_is_kept_only_when_it_is_durable(host: Host) -> None:
    """A store that remembered what a power cut takes from the trail would accuse it of having been cut."""
    service = await host.start()
    await service.checkpoints.sign()
    await service.make_key()
    before = await service.store.anchor()
    service.trail.unsyncable = True

    await service.checkpoints.sign_if_possible()

    assert await service.store.anchor() == before
    assert service.checkpoints.last is not None
    assert before is not None
    assert service.checkpoints.last.seq == before.seq
    assert service.log.getvalue().count('"audit_checkpoint"') == 1
    assert "audit_not_signed" in service.log.getvalue()
    service.trail.unsyncable = False
    await service.checkpoints.sign()
    after = await service.store.anchor()
    assert after is not None
    assert before is not None
    assert after.seq > before.seq


async def test_signing_pushes_no_mutation_out_of_memory(host: Host) -> None:
    """With one a minute, a week would: an intent left open would be settled as if it had not been committed."""
    service = await host.start()
    await service.make_key()
    mutations = STATEMENTS[MUTATIONS.table].all
    before = await service.store._run(service.store._database.rows, mutations, {})

    await service.checkpoints.sign()

    assert await service.store._run(service.store._database.rows, mutations, {}) == before


async def test_a_mutation_tells_the_trail_of_its_commit(host: Host) -> None:
    """Its outcome has the store's sequence, which is what a store put back is known by."""
    service = await host.start()
    await service.make_key(ALICE)
    outcome = service.newest()

    assert outcome["additionalEventData"]["storeSequence"] == service.store.sequence
    assert service.trail.store_sequence == service.store.sequence


async def test_sealing_signs_what_came_before(host: Host, tmp_path: Path) -> None:
    """While nobody can sign, everything up to the seal is signed."""
    service = await host.start()
    await service.make_key()
    await service.unsealing.seal()

    assert f'"{CHECKPOINT}"' in (tmp_path / "audit.log").read_text().splitlines()[-1]


async def test_a_store_that_only_looks_as_if_it_had_been_upgraded_is_refused(host: Host, tmp_path: Path) -> None:
    """The mark of an upgrade can be written by anybody; a store that has an audit key had a state row, too."""
    await (await host.start()).make_key()
    await host.stop()
    store = await SqlStore.open(tmp_path / "store.sqlite")
    store._database._execute("DELETE FROM keys")
    store._database._execute("UPDATE state SET version = 0, content = x'', mac = x''")
    await store.close()
    (tmp_path / "audit.log").unlink()
    host.forget_token()

    assert "the store lacks the state row that it had" in await host.refusal()


async def test_whatever_signing_meets_the_keys_are_wiped(host: Host) -> None:
    """An anchor that somebody changes under the daemon keeps neither a seal from happening nor the next signature."""
    service = await host.start()
    await service.make_key()
    service.store.faults["commit"] = RowChangedError("anchors", "audit")

    await service.checkpoints.sign_if_possible()
    assert "audit_not_signed" in service.log.getvalue()

    service.store.faults["commit"] = MemoryError()
    service.trail.append([system_record("Start")])
    with pytest.raises(MemoryError):
        await service.unsealing.seal()
    assert service.seal.sealed


async def test_a_sequence_that_no_store_has_can_be_accepted(host: Host, tmp_path: Path) -> None:
    """Somebody made it up; the store must not count on from it until no number is left."""
    await (await host.start()).make_key()
    await host.stop()
    forge_mark(tmp_path, store_sequence=(1 << 64) - 1)
    await host.refusal()

    await (await host.start(ACCEPTING)).make_key()

    await (await host.start()).make_key()


async def test_the_token_is_told_of_changes_every_hour(host: Host) -> None:
    """What was made since the last unseal is not lost to a copy from before it, but for the last hour."""
    service = await host.start()
    before = dict(service.root.anchors)
    await service.anchor_sleeps.wake()
    await service.anchor_sleeps.again()
    assert service.root.anchors == before

    await service.make_key()
    await service.anchor_sleeps.wake()
    await service.anchor_sleeps.again()
    assert service.root.anchors == dict.fromkeys(before, service.store.sequence)
    assert set(service.anchor_sleeps.seconds) == {KEEP_SECONDS}

    await service.unsealing.seal()
    assert service.token_anchor._task is None
