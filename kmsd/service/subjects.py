"""Whom a simulation is about: a caller made from what principals say of a process.

A named user is in the groups that the host gives it. What else nobody said is undetermined, so that the answer errs
towards refusing: every Deny that may concern such a process does.
"""

from __future__ import annotations

from collections.abc import Sequence

from kmsd.api.errors import ValidationError
from kmsd.identity.directory import Directory
from kmsd.identity.principals import Administrators, Caller, Names, Principal, PrincipalKind, parse_principal

# (uid_t) -1, which no user has (credentials(7)): of whom only a unit or a group is said.
_NOBODY = 2**32 - 1


class Subjects:
    """Makes callers out of principals."""

    def __init__(self, directory: Directory, administrators: Administrators) -> None:
        self._directory = directory
        self._administrators = administrators

    async def read(self, texts: Sequence[str]) -> tuple[Caller, str]:
        """Return the process that these principals describe together, and how that was understood.

        Raises ValidationError for what is no principal, and where they contradict each other.
        """
        names = await self._directory.known(texts)
        said = [_principal(text, names) for text in texts]
        uid = _only(said, PrincipalKind.UID)
        unit = _only(said, PrincipalKind.UNIT)
        user_unit = _only(said, PrincipalKind.USER_UNIT)
        exe = _only(said, PrincipalKind.EXE)
        if unit is not None and user_unit is not None:
            raise ValidationError("a process is in a system unit or in a user's, not in both")
        gids = {one.value for one in said if one.kind is PrincipalKind.GID and one.value is not None}
        user = None
        if uid is not None and uid.value is not None:
            user = await self._directory.user_name(uid.value)
            if user is not None:
                gids |= await self._directory.groups_of(user)
        administrator = any(one.kind is PrincipalKind.ADMINISTRATORS for one in said) or await self._administers(
            uid, frozenset(gids)
        )
        in_unit = unit is not None or user_unit is not None
        missing = {
            "user": uid is None,
            "unit": not in_unit,
            "user_unit": not in_unit,
            "exe": exe is None,
            "administrator": uid is None and not administrator,
        }
        caller = Caller(
            uid=_NOBODY if uid is None or uid.value is None else uid.value,
            gid=min(gids, default=_NOBODY),
            groups=frozenset(gids),
            pid=0,
            user=user,
            unit=None if unit is None else unit.text,
            user_unit=None if user_unit is None else user_unit.text,
            exe=None if exe is None else exe.text,
            administrator=administrator,
            undetermined=frozenset(name for name, is_missing in missing.items() if is_missing),
        )
        return caller, described(caller)

    async def _administers(self, uid: Principal | None, gids: frozenset[int]) -> bool:
        if uid is not None and uid.value in self._administrators.uids:
            return True
        groups = [await self._directory.gid_of(group) for group in self._administrators.groups]
        return any(gid in gids for gid in groups if gid is not None)


def described(caller: Caller) -> str:
    """Say for people who a caller is."""
    known = caller.uid != _NOBODY
    parts = [f"uid {caller.uid}" + (f" ({caller.user})" if caller.user is not None else "")] if known else []
    if not known and caller.groups:
        parts.append("somebody in " + ", ".join(f"gid:{gid}" for gid in sorted(caller.groups)))
    if not known and caller.administrator:
        parts.append("an administrator")
    parts += [f"unit:{caller.unit}"] if caller.unit is not None else []
    parts += [f"user-unit:{caller.user_unit}"] if caller.user_unit is not None else []
    parts += [f"exe:{caller.exe}"] if caller.exe is not None and not known else []
    return ", ".join(parts)


def _principal(text: str, names: Names) -> Principal:
    try:
        principal = parse_principal(text, names)
    except ValueError as error:
        raise ValidationError(str(error)) from None
    if principal.kind is PrincipalKind.ANY:
        raise ValidationError("* is everybody: name somebody")
    if principal.name is not None and principal.value is None:
        raise ValidationError(f"{text!a:.80} does not exist on this host")
    return principal


def _only(said: Sequence[Principal], kind: PrincipalKind) -> Principal | None:
    found = [one for one in said if one.kind is kind]
    if len({(one.value, one.text) for one in found}) > 1:
        raise ValidationError(f"{found[0]} and {found[1]} are not one process: principals describe one together")
    return found[0] if found else None
