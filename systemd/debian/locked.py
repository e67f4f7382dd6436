"""Which packages of requirements.lock a distribution needs: a base or an extra of this project, and all below it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "requirements.lock"
PROJECT = "kmsd"


def needed(extras: Iterable[str] = ()) -> set[str]:
    """Return the names of all packages that the project needs with these extras, as installed in this environment."""
    found: set[str] = set()
    waiting = [(PROJECT, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        for text in requires(name) or ():
            requirement = Requirement(text)
            below = canonicalize_name(requirement.name)
            applies = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in wanted | {""}
            )
            if applies and below not in found:
                found.add(below)
                waiting.append((below, frozenset(requirement.extras)))
    return found


def locked(extras: Iterable[str] = ()) -> str:
    """Return the part of requirements.lock, hashes included, that the project needs with these extras."""
    entries: dict[str, str] = {
        canonicalize_name(entry.partition("==")[0]): entry for entry in _entries(LOCK.read_text("utf-8"))
    }
    return "".join(entries[name] for name in sorted(needed(extras)))


def _entries(lock: str) -> list[str]:
    """Split the lock where a line begins with a package's name."""
    return [entry for entry in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE) if "==" in entry]
