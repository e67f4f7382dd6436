"""The host's users and groups: who has which id, and which name.

Names are asked of the host's name service, each question once however many wait for the answer, and remembered for a
short while; so is that a question cannot be answered, for somewhat longer, so that a service which hangs is not asked
the same again and again.

Ids that systemd gives to services while they run (DynamicUser=) have names as well, those of the services. Such an id
is another's as soon as the service has stopped, so here it has no name, and its name no id: `unit:` is how to speak of
such a service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kmsd.identity.answering import Found, Kind
from kmsd.identity.lookups import NoAnswerError, Source
from kmsd.identity.principals import Names, NameServiceError, is_name

# How long a name is remembered. It bounds how long a removed account's name still counts, and how often a directory
# service is asked; nscd and sssd keep names for longer than this themselves.
NAME_LIFETIME_SECONDS = 10.0
# How long the same is not asked again of a service that did not answer it.
FAILURE_LIFETIME_SECONDS = 30.0
# Names remembered at a time: some 400 KiB. A user with 65,536 subordinate uids can connect as any of them.
_MAX_REMEMBERED = 4096
# DYNAMIC_UID_MIN and DYNAMIC_UID_MAX of systemd (docs/UIDS-GIDS.md), for users and groups.
TRANSIENT_IDS = range(61184, 65520)


@dataclass(frozen=True)
class _Remembered:
    expires: float
    found: Found
    failure: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """The ids of some names as they were when they were looked up; of others it knows nothing."""

    users: Mapping[str, int]
    groups: Mapping[str, int]

    def user_name(self, uid: int) -> str | None:
        """Return the name of `uid`."""
        return next((name for name, one in self.users.items() if one == uid), None)

    def group_name(self, gid: int) -> str | None:
        """Return the name of `gid`."""
        return next((name for name, one in self.groups.items() if one == gid), None)

    def uid_of(self, name: str) -> int | None:
        """Return the uid of the user `name`."""
        return self.users.get(name)

    def gid_of(self, name: str) -> int | None:
        """Return the gid of the group `name`."""
        return self.groups.get(name)


class Directory:
    """Asks `source`; `clock` gives seconds. Everything raises NameServiceError when the source cannot tell."""

    def __init__(
        self,
        source: Source,
        clock: Callable[[], float] = time.monotonic,
        *,
        lifetime_seconds: float = NAME_LIFETIME_SECONDS,
    ) -> None:
        self._source = source
        self._clock = clock
        self._lifetime_seconds = lifetime_seconds
        self._remembered: dict[tuple[Kind, int | str], _Remembered] = {}
        self._asking: dict[tuple[Kind, int | str], asyncio.Task[Found]] = {}

    async def user_name(self, uid: int) -> str | None:
        """Return the name of `uid`, None if it has none."""
        return _text(await self._ask("user_name", uid)) if uid not in TRANSIENT_IDS else None

    async def group_name(self, gid: int) -> str | None:
        """Return the name of `gid`, None if it has none."""
        return _text(await self._ask("group_name", gid)) if gid not in TRANSIENT_IDS else None

    async def uid_of(self, name: str) -> int | None:
        """Return the uid of the user `name`, None if there is none."""
        return _lasting_id(await self._ask("uid_of", name))

    async def gid_of(self, name: str) -> int | None:
        """Return the gid of the group `name`, None if there is none."""
        return _lasting_id(await self._ask("gid_of", name))

    async def groups_of(self, user: str) -> frozenset[int]:
        """Return the gids of the groups that the user `user` would have after a login; none for nobody."""
        found = await self._ask("groups_of", user)
        return frozenset(found) if isinstance(found, list) else frozenset()

    async def known(self, principals: Iterable[str]) -> Names:
        """Return what the users and groups in `principals`, as "user:NAME" and "group:NAME", are now."""
        named = [one.partition(":") for one in sorted(principals)]
        users = [name for kind, _, name in named if kind == "user"]
        groups = [name for kind, _, name in named if kind == "group"]
        uids = [await self.uid_of(name) for name in users]
        gids = [await self.gid_of(name) for name in groups]
        return Snapshot(
            {name: uid for name, uid in zip(users, uids, strict=True) if uid is not None},
            {name: gid for name, gid in zip(groups, gids, strict=True) if gid is not None},
        )

    async def _ask(self, kind: Kind, subject: int | str) -> Found:
        if isinstance(subject, str) and not is_name(subject):
            return None  # not even the name service has to see it
        key = (kind, subject)
        if (known := self._remembered.get(key)) is not None and self._clock() < known.expires:
            if known.failure is not None:
                raise NameServiceError(known.failure)
            return known.found
        if (asking := self._asking.get(key)) is None:
            asking = self._asking[key] = asyncio.get_running_loop().create_task(self._asked(kind, subject))
            asking.add_done_callback(lambda done: self._answered(key, done))
        # Who gives up does not take the answer from the others.
        return await asyncio.shield(asking)

    def _answered(self, key: tuple[Kind, int | str], asking: asyncio.Task[Found]) -> None:
        self._asking.pop(key, None)
        if not asking.cancelled():
            asking.exception()  # told to those who wait, if any does still

    async def _asked(self, kind: Kind, subject: int | str) -> Found:
        try:
            found = await self._source.ask(kind, subject)
        except NoAnswerError as error:
            self._remember(kind, subject, _Remembered(self._clock() + FAILURE_LIFETIME_SECONDS, None, str(error)))
            raise
        self._remember(kind, subject, _Remembered(self._clock() + self._lifetime_seconds, found))
        return found

    def _remember(self, kind: Kind, subject: int | str, what: _Remembered) -> None:
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[kind, subject] = what


def _text(found: Found) -> str | None:
    return found if isinstance(found, str) else None


def _lasting_id(found: Found) -> int | None:
    return found if isinstance(found, int) and found not in TRANSIENT_IDS else None
