"""Names, callers and grants that tests of decisions are told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmsd.access.decision import Decision, Step
from kmsd.access.facts import Facts
from kmsd.access.grants import Grant, GrantIndex
from kmsd.identity.principals import Caller


@dataclass
class GivenNames:
    users: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    def user_name(self, uid: int) -> str | None:
        return next((name for name, one in self.users.items() if one == uid), None)

    def group_name(self, gid: int) -> str | None:
        return next((name for name, one in self.groups.items() if one == gid), None)

    def uid_of(self, name: str) -> int | None:
        return self.users.get(name)

    def gid_of(self, name: str) -> int | None:
        return self.groups.get(name)


def made_caller(said: Mapping[str, Any]) -> Caller:
    """Return a caller of whom a test tells only what matters."""
    gid = said.get("gid", said["uid"])
    return Caller(
        uid=said["uid"],
        gid=gid,
        groups=frozenset({gid, *said.get("groups", [])}),
        pid=1,
        user=said.get("user"),
        unit=said.get("unit"),
        user_unit=said.get("user_unit"),
        exe=said.get("exe"),
        administrator=said.get("administrator", False),
        undetermined=frozenset(said.get("undetermined", [])),
    )


def grant_id(number: int) -> str:
    """Return the id of a test's grant, which is told by a small number."""
    return f"{number:064x}"


@dataclass(frozen=True)
class GivenGrants:
    """The grants of one key, by grantee."""

    by_grantee: Mapping[str, tuple[Grant, ...]]

    @classmethod
    def of(cls, said: Iterable[Mapping[str, Any]]) -> "GivenGrants":
        """Return the grants that a test tells: id, grantee, operations, and equals or subset."""
        found: dict[str, tuple[Grant, ...]] = {}
        for one in said:
            actions = frozenset(f"kms:{operation}" for operation in one["operations"])
            grant = Grant(grant_id(one["id"]), actions, one.get("equals"), one.get("subset"))
            found[one["grantee"]] = (*found.get(one["grantee"], ()), grant)
        return cls(found)

    def allowed(self, caller: Caller, action: str, facts: Facts) -> Decision | None:
        """Return which grant lets `caller`, as the index finds it."""
        found = GrantIndex(self._of(caller)).find(action, facts.encryption_context())
        return None if found is None else Decision(f"grant {found}")

    def steps(self, caller: Caller, action: str, facts: Facts) -> tuple[Step, ...]:
        """Tell of the caller's grants for `action` whether each holds, as they themselves say."""
        return tuple(grant.step(action, facts) for grant in self._of(caller) if action in grant.actions)

    def _of(self, caller: Caller) -> list[Grant]:
        return [grant for grantee in caller.grantees for grant in self.by_grantee.get(grantee, ())]
