"""Wrapped secrets belong to one place, and cached material can be dropped at any time."""

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator, Sequence

import pytest

from kmsd.api.errors import IntegrityError, KeyUnavailableError, RecoverySharesError, SealedError
from kmsd.hsm.root import PinSource, TokenInfo, WrappedDomainKey
from kmsd.material.hierarchy import Hierarchy, Place, RecoveryWrapped
from kmsd.material.versions import MaterialNotLoadedError, Versions, material_id_of
from kmsd.memory.arena import Arena
from kmsd.metrics.meter import OF_TOKEN_JOBS, Meter
from kmsd.store.rows import MaterialRow

PLACE = Place("material", "a", 1, "SYMMETRIC_DEFAULT")


class PlainRoot:
    """A root that keeps domain keys as they are: what is tested here lies above the token."""

    seen = None

    def __init__(self) -> None:
        self.pins: list[PinSource | None] = []
        self.anchors: dict[str, int] = {}
        self.meter = Meter(OF_TOKEN_JOBS)

    async def look(self) -> TokenInfo:
        raise NotImplementedError

    async def make_domain_key(
        self, domain_key_id: str, generation: int, into: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        self.pins.append(pin)
        into[:] = os.urandom(len(into))
        return WrappedDomainKey(domain_key_id, generation, bytes(into))

    async def wrap_domain_key(
        self, domain_key_id: str, generation: int, key: memoryview, pin: PinSource | None = None
    ) -> WrappedDomainKey:
        self.pins.append(pin)
        return WrappedDomainKey(domain_key_id, generation, bytes(key))

    async def unwrap(
        self,
        records: Sequence[WrappedDomainKey],
        into: Sequence[memoryview],
        pin: PinSource | None = None,
        *,
        anchor: str | None = None,
    ) -> int | None:
        self.pins.append(pin)
        for record, view in zip(records, into, strict=True):
            view[:] = record.wrapped
        return None if anchor is None else self.anchors.get(anchor)

    async def keep_anchor(self, store_id: str, sequence: int, pin: PinSource | None = None) -> bool:
        raise NotImplementedError


class Rows:
    """Material rows in a dict."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], MaterialRow] = {}

    async def material(self, key_id: str, number: int) -> MaterialRow | None:
        return self.rows.get((key_id, number))


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(128 * 1024)
    yield arena
    arena.wipe()


@pytest.fixture
async def hierarchy(arena: Arena) -> Hierarchy:
    hierarchy = Hierarchy(arena, PlainRoot(), os.urandom)
    await hierarchy.create("domain-1", 1)
    return hierarchy


async def test_a_secret_comes_back_from_its_place(arena: Arena, hierarchy: Hierarchy) -> None:
    """Wrapping and unwrapping at the same place are inverse."""
    secret = arena.random(32)

    with hierarchy.unwrap(PLACE, "domain-1", hierarchy.wrap(PLACE, secret.view)) as found:
        assert found.view == secret.view


@pytest.mark.parametrize(
    "other",
    [
        PLACE._replace(table="secrets"),
        PLACE._replace(record="b"),
        PLACE._replace(number=2),
        PLACE._replace(spec="HMAC_256"),
        Place("materiala", "", 1, "SYMMETRIC_DEFAULT"),
    ],
    ids=["table", "record", "number", "spec", "shifted"],
)
async def test_a_secret_does_not_open_elsewhere(arena: Arena, hierarchy: Hierarchy, other: Place) -> None:
    """A wrapped secret moved to another record is refused, whichever part of the place differs."""
    wrapped = hierarchy.wrap(PLACE, arena.random(32).view)

    with pytest.raises(IntegrityError):
        hierarchy.unwrap(other, "domain-1", wrapped)


async def test_a_changed_secret_is_named(arena: Arena, hierarchy: Hierarchy) -> None:
    """The error says which record was changed, and leaves no slot behind."""
    wrapped = bytearray(hierarchy.wrap(PLACE, arena.random(32).view))
    wrapped[-1] ^= 1
    used = arena.used_bytes

    with pytest.raises(IntegrityError, match="material record a"):
        hierarchy.unwrap(PLACE, "domain-1", bytes(wrapped))

    assert arena.used_bytes == used


@pytest.mark.parametrize("length", [0, 1, 65, 66 + 65536, 1024 * 1024])
async def test_what_has_the_length_of_no_wrapped_secret_is_refused(hierarchy: Hierarchy, length: int) -> None:
    """Too short to hold one, or longer than any: rows that nobody has verified yet, and headers, come here too."""
    with pytest.raises(IntegrityError, match="material record a"):
        hierarchy.unwrap(PLACE, "domain-1", b"\x01" * length)


async def test_the_newest_domain_key_wraps_and_all_unwrap(arena: Arena) -> None:
    """After a rotation, what an older domain key wrapped still opens."""
    root = PlainRoot()
    hierarchy = Hierarchy(arena, root, os.urandom)
    first = await hierarchy.create("domain-1", 1)
    wrapped = hierarchy.wrap(PLACE, arena.random(32).view)
    second = await hierarchy.create("domain-2", 2)

    again = Hierarchy(arena, root, os.urandom)
    await again.unseal([second, first])

    assert again.current_domain_key == "domain-2"
    again.unwrap(PLACE, "domain-1", wrapped).release()


async def test_the_tokens_anchor_comes_with_the_keys(arena: Arena) -> None:
    """The number that the token holds for the store; None for one that it does not know, and when nobody asks."""
    root = PlainRoot()
    root.anchors["store-1"] = 7
    hierarchy = Hierarchy(arena, root, os.urandom)
    record = await hierarchy.create("domain-1", 1)

    assert await hierarchy.unseal([record], anchor="store-1") == 7
    assert await hierarchy.unseal([record], anchor="store-2") is None
    assert await hierarchy.unseal([record]) is None


async def recoverable(arena: Arena, recovery_key: memoryview) -> tuple[Hierarchy, list[RecoveryWrapped]]:
    """Two domain keys, wrapped for recovery as well."""
    hierarchy = Hierarchy(arena, PlainRoot(), os.urandom)
    records = []
    for generation in (1, 2):
        name = f"domain-{generation}"
        await hierarchy.create(name, generation)
        records.append(RecoveryWrapped(name, generation, hierarchy.wrap_for_recovery(name, generation, recovery_key)))
    return hierarchy, records


async def test_the_recovery_key_opens_what_the_token_would(arena: Arena) -> None:
    """All domain keys come back without the root; the newest wraps from then on, and nobody was asked for a PIN."""
    recovery_key = arena.random(32).view
    hierarchy, records = await recoverable(arena, recovery_key)
    secret = arena.random(32)
    wrapped = hierarchy.wrap(PLACE, secret.view)
    root = PlainRoot()
    again = Hierarchy(arena, root, os.urandom)

    again.unseal_by_recovery(records, recovery_key)

    assert again.current_domain_key == "domain-2"
    with again.unwrap(PLACE, "domain-2", wrapped) as found:
        assert found.view == secret.view
    assert root.pins == []


@pytest.mark.parametrize(
    "change",
    [
        lambda first, second: [first._replace(domain_key_id="domain-3"), second],
        lambda first, second: [first, second._replace(generation=3)],
        lambda first, second: [first, second._replace(wrapped=first.wrapped)],
        lambda first, second: [first._replace(wrapped=b""), second],
        lambda first, second: [first, second._replace(wrapped=second.wrapped[:-1])],
        lambda first, second: [first._replace(wrapped=b"\x02" + first.wrapped[1:]), second],
        lambda first, second: [first._replace(wrapped=first.wrapped[:-1] + bytes([first.wrapped[-1] ^ 1])), second],
    ],
    ids=["id", "generation", "another's", "none", "cut", "version", "changed"],
)
async def test_a_changed_recovery_wrap_opens_nothing(
    arena: Arena, change: Callable[[RecoveryWrapped, RecoveryWrapped], list[RecoveryWrapped]]
) -> None:
    """One that does not open is one too many: no domain key is kept, and no memory."""
    recovery_key = arena.random(32).view
    _, (first, second) = await recoverable(arena, recovery_key)
    again = Hierarchy(arena, PlainRoot(), os.urandom)
    used = arena.used_bytes

    with pytest.raises(RecoverySharesError, match="are not of this store, or its domain keys were changed"):
        again.unseal_by_recovery(change(first, second), recovery_key)

    assert arena.used_bytes == used
    with pytest.raises(SealedError):
        _ = again.current_domain_key


async def test_another_recovery_key_opens_nothing(arena: Arena) -> None:
    """Nor does what wraps material stand for a recovery wrap, or the other way round."""
    recovery_key, other = arena.random(32).view, arena.random(32).view
    _, records = await recoverable(arena, recovery_key)
    again = Hierarchy(arena, PlainRoot(), os.urandom)

    with pytest.raises(RecoverySharesError):
        again.unseal_by_recovery(records, other)

    again.unseal_by_recovery(records, recovery_key)
    with pytest.raises(IntegrityError):
        again.unwrap(PLACE, "domain-1", records[0].wrapped)


async def test_sealed_there_is_nothing(arena: Arena, hierarchy: Hierarchy) -> None:
    """Sealing forgets every domain key and gives their memory back."""
    wrapped = hierarchy.wrap(PLACE, arena.random(32).view)
    hierarchy.seal()

    with pytest.raises(SealedError):
        hierarchy.unwrap(PLACE, "domain-1", wrapped)
    with pytest.raises(SealedError):
        hierarchy.wrap(PLACE, arena.random(32).view)


async def test_material_is_loaded_on_first_use(arena: Arena, hierarchy: Hierarchy) -> None:
    """A miss says how to load it; afterwards the same call answers."""
    rows = Rows()
    versions = Versions(arena, hierarchy, rows, capacity=10)
    key_id = str(uuid.uuid4())
    row = versions.create(key_id, 1, "SYMMETRIC_DEFAULT", 32, 0)
    rows.rows[key_id, 1] = row

    with pytest.raises(MaterialNotLoadedError) as missing:
        versions.get(key_id, 1)
    await missing.value.load()

    material = versions.get(key_id, 1)
    assert material.material_id == row.material_id == material_id_of(key_id, material.view)


async def test_the_least_recently_used_is_forgotten(arena: Arena, hierarchy: Hierarchy) -> None:
    """The cache holds as many as its capacity says, and gives the memory of the others back."""
    rows = Rows()
    versions = Versions(arena, hierarchy, rows, capacity=2)
    ids = [str(uuid.uuid4()) for _ in range(3)]
    for key_id in ids:
        rows.rows[key_id, 1] = versions.create(key_id, 1, "SYMMETRIC_DEFAULT", 32, 0)
    used = arena.used_bytes
    for key_id in ids[:2]:
        await versions.load(key_id, 1)
    versions.get(ids[0], 1)

    await versions.load(ids[2], 1)

    versions.get(ids[0], 1)
    with pytest.raises(MaterialNotLoadedError):
        versions.get(ids[1], 1)
    assert arena.used_bytes == used + 2 * 32


async def test_a_full_arena_forgets_before_it_fails(hierarchy: Hierarchy) -> None:
    """More keys than fit into secret memory are served one after the other."""
    small = Arena(64 * 1024)
    tight = Hierarchy(small, PlainRoot(), os.urandom)
    await tight.create("domain-1", 1)
    rows = Rows()
    versions = Versions(small, tight, rows, capacity=100_000)
    key_ids = [str(uuid.uuid4()) for _ in range(2500)]
    for key_id in key_ids:
        rows.rows[key_id, 1] = versions.create(key_id, 1, "SYMMETRIC_DEFAULT", 32, 0)

    for key_id in key_ids:
        await versions.load(key_id, 1)
        versions.get(key_id, 1)

    assert small.used_bytes <= small.limit_bytes


async def test_a_key_can_be_forgotten(arena: Arena, hierarchy: Hierarchy) -> None:
    """All its versions give their memory back; other keys stay."""
    rows = Rows()
    versions = Versions(arena, hierarchy, rows, capacity=10)
    key_id, other = str(uuid.uuid4()), str(uuid.uuid4())
    for address in ((key_id, 1), (key_id, 2), (other, 1)):
        rows.rows[address] = versions.create(*address, "SYMMETRIC_DEFAULT", 32, 0)
    used = arena.used_bytes
    for address in rows.rows:
        await versions.load(*address)

    versions.forget(key_id)

    assert arena.used_bytes == used + 32
    versions.get(other, 1)
    for number in (1, 2):
        with pytest.raises(MaterialNotLoadedError):
            versions.get(key_id, number)


async def test_a_load_under_way_brings_nothing_back(arena: Arena, hierarchy: Hierarchy) -> None:
    """The row was read before the key was forgotten; a load that begins later reads what there is then."""

    class SlowRows(Rows):
        async def material(self, key_id: str, number: int) -> MaterialRow | None:
            row = await super().material(key_id, number)
            await asyncio.sleep(0)
            return row

    rows = SlowRows()
    versions = Versions(arena, hierarchy, rows, capacity=10)
    key_id = str(uuid.uuid4())
    rows.rows[key_id, 1] = versions.create(key_id, 1, "SYMMETRIC_DEFAULT", 32, 0)
    loading = asyncio.ensure_future(versions.load(key_id, 1))
    await asyncio.sleep(0)

    versions.forget(key_id)
    await loading

    with pytest.raises(MaterialNotLoadedError):
        versions.get(key_id, 1)
    await versions.load(key_id, 1)
    versions.get(key_id, 1)


async def test_missing_material_is_said(arena: Arena, hierarchy: Hierarchy) -> None:
    """A blob may name a material number that the key never had."""
    versions = Versions(arena, hierarchy, Rows(), capacity=10)

    with pytest.raises(KeyUnavailableError, match="no material number 9"):
        await versions.load(str(uuid.uuid4()), 9)
