"""Whom the principals of a statement mean, as sets: asked for every request."""

from __future__ import annotations

from collections.abc import Iterable

from kmsd.identity.principals import ATTRIBUTES, Caller, Principal, PrincipalKind


class Audience:
    """Some principals, of which one has to mean a caller."""

    __slots__ = ("_administrators", "_doubtful", "_everybody", "_gids", "_others", "_uids", "_unusual")

    def __init__(self, principals: Iterable[Principal], doubtful: frozenset[str]) -> None:
        listed = tuple(principals)
        kinds = {one.kind for one in listed}
        self._everybody = PrincipalKind.ANY in kinds
        self._administrators = PrincipalKind.ADMINISTRATORS in kinds
        self._uids = frozenset[int]().union(*(one.ids for one in listed if one.kind is PrincipalKind.UID))
        self._gids = frozenset[int]().union(*(one.ids for one in listed if one.kind is PrincipalKind.GID))
        # Units and programs, by the kind and what stands in the policy.
        self._others = frozenset((one.kind, one.text) for one in listed if one.text is not None)
        self._doubtful = doubtful
        # Whether anything but ids and administrators has to be looked at.
        self._unusual = bool(self._others or doubtful)

    @classmethod
    def certain(cls, principals: Iterable[Principal]) -> Audience:
        """Return those whom the principals mean for certain."""
        return cls((one for one in principals if not one.suspended), frozenset())

    @classmethod
    def possible(cls, principals: Iterable[Principal]) -> Audience:
        """Return those whom the principals may mean: also callers of whom that cannot be told."""
        listed = tuple(principals)
        return cls(listed, frozenset(ATTRIBUTES[one.kind] for one in listed if one.kind in ATTRIBUTES))

    def includes(self, caller: Caller) -> bool:
        """Tell whether `caller` is one of them."""
        return (
            caller.uid in self._uids
            or self._everybody
            or (self._administrators and caller.administrator)
            or caller.gid in self._gids
            or not self._gids.isdisjoint(caller.groups)
            or (self._unusual and self._includes_unusual(caller))
        )

    def _includes_unusual(self, caller: Caller) -> bool:
        return not self._doubtful.isdisjoint(caller.undetermined) or any(
            (kind, getattr(caller, attribute)) in self._others for kind, attribute in ATTRIBUTES.items()
        )


class EverybodyElse:
    """What NotPrincipal means: everybody who is not one of some principals for certain."""

    __slots__ = ("_excepted",)

    def __init__(self, principals: Iterable[Principal]) -> None:
        self._excepted = Audience.certain(principals)

    def includes(self, caller: Caller) -> bool:
        """Tell whether `caller` is one of them."""
        return not self._excepted.includes(caller)
