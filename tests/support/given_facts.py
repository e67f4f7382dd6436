"""A request, as conditions see it, that has what a test says."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kmsd.access.facts import Values


@dataclass(frozen=True)
class GivenFacts:
    """Values by condition key, in lower case, and an encryption context."""

    given: Mapping[str, Values] = field(default_factory=dict)
    context: dict[str, str] | None = None

    def values(self, key: str) -> Values:
        """Return what was given for `key`."""
        return self.given.get(key)

    def encryption_context(self) -> dict[str, str] | None:
        """Return the encryption context that was given."""
        return self.context


NO_FACTS = GivenFacts()
