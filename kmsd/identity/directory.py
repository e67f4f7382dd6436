"""The host's users and groups, as those ask who can wait for an answer."""

from __future__ import annotations

import os
import pwd

from kmsd.identity.principals import Names


class Directory:
    """Asks `names`, and the C library for the groups of a user."""

    def __init__(self, names: Names) -> None:
        self._names = names

    async def user_name(self, uid: int) -> str | None:
        """Return the name of `uid`, None if it has none."""
        return self._names.user_name(uid)

    async def gid_of(self, name: str) -> int | None:
        """Return the gid of the group `name`, None if there is none."""
        return self._names.gid_of(name)

    async def groups_of(self, user: str) -> frozenset[int]:
        """Return the groups that a user is in, the primary one among them; none of a user who does not exist."""
        try:
            primary = pwd.getpwnam(user).pw_gid
        except KeyError:
            return frozenset()
        return frozenset(os.getgrouplist(user, primary))
