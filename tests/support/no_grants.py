"""A key without grants, where there is no store."""

from kmsd.access.explanation import Step
from kmsd.access.facts import Facts
from kmsd.access.rules import Decision
from kmsd.identity.principals import Caller
from kmsd.service.granting import KeyGrants


class NoGrants(KeyGrants):
    """The grants of a key that has none; nothing has to be read for that."""

    def __init__(self) -> None:
        """Unlike its base, it needs no store."""

    def allowed(self, caller: Caller, action: str, facts: Facts) -> Decision | None:  # noqa: ARG002 - the interface's
        return None

    def steps(self, caller: Caller, action: str, facts: Facts) -> tuple[Step, ...]:  # noqa: ARG002 - the interface's
        return ()
