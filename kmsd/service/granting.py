"""Grants in memory: of each key those of the callers who asked, found by what they ask, in bounded memory.

The grants of a key are read when a policy of the key has not decided, for one caller at a time. A key may have 50,000:
they are read in pages, so that nobody else waits, and of those without a constraint only what they permit is kept.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace

from kmsd.access.explanation import Step
from kmsd.access.facts import Facts
from kmsd.access.grammar import as_unix
from kmsd.access.grantees import is_named, stands
from kmsd.access.grants import Grant, GrantIndex
from kmsd.access.rules import Decision, Effect
from kmsd.api.grants import GrantOperation
from kmsd.api.operation import action_of
from kmsd.identity.directory import Directory
from kmsd.identity.principals import Caller, NameServiceError
from kmsd.material.versions import NotLoadedError
from kmsd.service.under_way import look_at
from kmsd.store.base import Store
from kmsd.store.rows import GrantRow

# How long names of users and groups are trusted before they are looked up again: as long as nscd and sssd keep an
# answer by default.
NAMES_TRUSTED_SECONDS = 60.0

# Grants with a constraint that are kept for all keys and callers: each takes some 1 KiB, at most. More than one key has
# for one caller, so that whatever was read can also be used.
MAX_CONSTRAINED = 64 * 1024
# Of callers who have no grants, or some without constraints, which take half a KiB.
MAX_CALLERS = 8192
# Rows that are read at once; it takes the event loop 1 ms to find a place for so many.
_PAGE_ROWS = 256
# Above so many grants of a key, those of each grantee are looked up by themselves, in pages.
_FEW_ROWS = 512
# Values of one query; SQLite takes 32,766, and a user may be in 65,536 groups.
_MOST_VALUES = 512
_ACTIONS = {operation.value: action_of(operation.value) for operation in GrantOperation}
# Grants of a caller that an explanation shows.
_MAX_STEPS = 32


class GrantsNotLoadedError(NotLoadedError):
    """A caller's grants on a key are not in memory."""

    def __init__(self, grants: KeyGrants, grantees: frozenset[str]) -> None:
        super().__init__()
        self._grants = grants
        self._grantees = grantees

    async def load(self) -> None:
        """Read them."""
        await self._grants.load(self._grantees)


class _Held:
    """A caller's grants on one key; `named` tells of each name among them, and what it was kept as, if it stood."""

    __slots__ = ("expires", "index", "named", "shown")

    def __init__(self) -> None:
        self.index = GrantIndex()
        self.shown: list[Grant] = []
        self.named: dict[tuple[str, str], bool] = {}
        self.expires = math.inf

    def add(self, grant: Grant) -> None:
        if len(self.shown) < _MAX_STEPS:
            self.shown.append(grant)
        self.index.add(grant)


class GrantCache:
    """The grants of all keys; `clock` gives monotonic seconds."""

    def __init__(self, store: Store, directory: Directory, *, clock: Callable[[], float]) -> None:
        self.store = store
        self.directory = directory
        self.clock = clock
        # What is kept for all who have no grants, which are most.
        self.nothing = _Held()
        self._kept: OrderedDict[tuple[KeyGrants, frozenset[str]], int] = OrderedDict()
        self._constrained = 0

    def of(self, key_id: str) -> KeyGrants:
        """Return the grants of a key, of which nothing is in memory yet."""
        return KeyGrants(self, key_id)

    def keep(self, grants: KeyGrants, grantees: frozenset[str], constrained: int) -> None:
        """Count what was read for a caller, and forget the oldest of what is too much; not what was just read."""
        self.drop(grants, grantees)
        self._kept[grants, grantees] = constrained
        self._constrained += constrained
        while len(self._kept) > 1 and (len(self._kept) > MAX_CALLERS or self._constrained > MAX_CONSTRAINED):
            oldest, whose = next(iter(self._kept))
            oldest.forget(whose)

    def drop(self, grants: KeyGrants, grantees: frozenset[str]) -> None:
        """Count it no more."""
        self._constrained -= self._kept.pop((grants, grantees), 0)


class KeyGrants:
    """What the grants of one key permit (`kmsd.access.grants.Granting`); a caller's are read when he asks first."""

    def __init__(self, cache: GrantCache, key_id: str) -> None:
        self._cache = cache
        self._key_id = key_id
        self._held: dict[frozenset[str], _Held] = {}
        self._loading: dict[frozenset[str], asyncio.Task[None]] = {}
        self._forgotten = False

    def allowed(self, caller: Caller, action: str, facts: Facts) -> Decision | None:
        """Return which grant lets `caller` do `action`; raises GrantsNotLoadedError."""
        index = self._find(caller).index
        # Whatever the encryption context is; it takes time to find.
        found = index.find(action, None)
        if found is None and index.constrained:
            found = index.find(action, facts.encryption_context())
        return None if found is None else Decision(f"grant {found}")

    def steps(self, caller: Caller, action: str, facts: Facts) -> tuple[Step, ...]:
        """Tell of the caller's first grants that permit `action` whether each holds; raises GrantsNotLoadedError."""
        shown = self._find(caller).shown
        steps = [grant.step(action, facts) for grant in shown if action in grant.actions]
        if (decision := self.allowed(caller, action, facts)) is not None and not any(step.holds for step in steps):
            steps.append(Step(decision.rule, 0, "", Effect.ALLOW, holds=True, reason="the grantee is the caller"))
        return tuple(steps)

    def _find(self, caller: Caller) -> _Held:
        held = self._held.get(caller.grantees)
        if held is None or (held.expires != math.inf and held.expires < self._cache.clock()):
            raise GrantsNotLoadedError(self, caller.grantees)
        return held

    async def load(self, grantees: frozenset[str]) -> None:
        """Read the grants of who is all of `grantees`; who asks for them meanwhile waits for the same."""
        task = self._loading.get(grantees)
        if task is None:
            task = asyncio.ensure_future(self._load(grantees))
            self._loading[grantees] = task
            task.add_done_callback(lambda _: self._loading.pop(grantees, None))
            task.add_done_callback(look_at)
        # It goes on for the others when one of them hangs up.
        await asyncio.shield(task)

    async def _load(self, grantees: frozenset[str]) -> None:
        held = self._held.get(grantees)
        if held is None or not await self._names_stand_as(held.named):
            held = await self._read(grantees)
        if held.named:
            held.expires = self._cache.clock() + NAMES_TRUSTED_SECONDS
        # After `forget_all` only requests that came before use this, and it goes with them.
        self._held[grantees] = held
        if not self._forgotten:
            self._cache.keep(self, grantees, held.index.constrained)

    async def _names_stand_as(self, named: Mapping[tuple[str, str], bool]) -> bool:
        for (text, key), stood in named.items():
            if await still_stands(text, key, self._cache.directory) is not stood:
                return False
        return True

    async def _read(self, grantees: frozenset[str]) -> _Held:
        held = _Held()
        shared: dict[frozenset[str], frozenset[str]] = {}
        async for page in pages(self._cache.store, self._key_id, grantees):
            for row in page:
                if is_named(row.grantee_text):
                    said = (row.grantee_text, row.grantee)
                    if said not in held.named:
                        held.named[said] = await still_stands(*said, self._cache.directory)
                    if not held.named[said]:
                        continue
                grant = grant_of(row)
                # Most grants permit one of a few sets of actions.
                held.add(replace(grant, actions=shared.setdefault(grant.actions, grant.actions)))
        return held if held.shown or held.named else self._cache.nothing

    def forget(self, grantees: frozenset[str]) -> None:
        """Forget a caller's."""
        self._held.pop(grantees, None)
        self._cache.drop(self, grantees)

    def forget_all(self) -> None:
        """Forget everything: the key's next record has its grants as they are then."""
        self._forgotten = True
        for grantees in tuple(self._held):
            self.forget(grantees)


async def still_stands(text: str, key: str, directory: Directory) -> bool:
    """Tell whether `text`, which a grant was made with, still means `key`; not while that cannot be found out."""
    if not is_named(text):
        return True
    try:
        return stands(text, key, await directory.known([as_unix(text)]))
    except NameServiceError:
        return False


async def pages(store: Store, key_id: str, grantees: frozenset[str]) -> AsyncIterator[list[GrantRow]]:
    """Read the grants of a key for one of these grantees."""
    count = await store.count_grants(key_id)
    ordered = sorted(grantees)
    if count <= _FEW_ROWS:
        for start in range(0, len(ordered) if count else 0, _MOST_VALUES):
            yield await store.grants_for(key_id, ordered[start : start + _MOST_VALUES])
        return
    for grantee in ordered:
        after: str | None = None
        while page := await store.grants(key_id, grantee=grantee, after=after, limit=_PAGE_ROWS):
            yield page
            after = page[-1].grant_id


def grant_of(row: GrantRow) -> Grant:
    """Return what a grant permits."""
    actions = frozenset(_ACTIONS[operation] for operation in row.operations)
    return Grant(row.grant_id, actions, row.context_equals, row.context_subset)
