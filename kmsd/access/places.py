"""Where in a policy something stands, so that what is wrong with it can be told by line and column."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

# Strings, brackets, what separates, and all else: of a text that was read already, so that it is JSON.
_PART = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
# How much of a member's name a message shows.
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Place:
    """A value of a document, by the members and indexes that lead to it; `label` is what messages call it."""

    path: tuple[str | int, ...]
    label: str
    is_name: bool = False

    def member(self, name: str) -> Place:
        """Return the place of a member of this object."""
        return Place((*self.path, name), f"{self.label}, {readable(name)}" if self.path else readable(name))

    def item(self, index: int) -> Place:
        """Return the place of an item of this list, which is called as the list is."""
        return Place((*self.path, index), self.label)

    def name(self, name: str) -> Place:
        """Return the place of a member's name in this object, which is called as the object is."""
        return Place((*self.path, name), self.label, is_name=True)


def readable(name: str) -> str:
    """Return a member's name for people: not longer than a line, and harmless on a terminal."""
    return name if name.isprintable() and len(name) <= _SHOWN_CHARACTERS else f"{name!a:.{_SHOWN_CHARACTERS}}"


DOCUMENT = Place((), "the document")


class GrammarError(ValueError):
    """A place of a document has something that is not valid there."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(problem)
        self.place = place
        self.problem = problem


def line_and_column(text: str, offset: int) -> str:
    """Return where an offset of `text` is, both counted from 1."""
    line = text.count("\n", 0, offset) + 1
    column = offset - text.rfind("\n", 0, offset)
    return f"line {line} column {column}"


@dataclass(slots=True)
class _Container:
    """An object or list that was begun; `at` is where in it the scan is, and `wanted` where it wants to be."""

    is_list: bool
    wanted: str | int | None
    at: str | int | None = None
    named: bool = field(default=False)


def locate(text: str, place: Place) -> int:
    """Return the offset at which a place of the JSON document `text` begins.

    One scan; members' names are only read in what leads to the place.
    """
    path: tuple[str | int | None, ...] = (*place.path, None)
    containers: list[_Container] = []
    for token in _PART.finditer(text):
        inner = containers[-1] if containers else None
        match token.group():
            case ",":
                _go_on(inner)
            case ":":
                pass
            case "}" | "]":
                containers.pop()
            case part if inner is not None and not inner.is_list and not inner.named:
                inner.named = True
                inner.at = json.loads(part) if inner.wanted is not None else None
                if place.is_name and len(containers) == len(place.path) and _arrived(inner):
                    return token.start()
            case part:
                leads_there = inner is None or _arrived(inner)
                if leads_there and len(containers) == len(place.path) and not place.is_name:
                    return token.start()
                if part in {"{", "["}:
                    wanted = path[len(containers)] if leads_there else None
                    containers.append(_Container(part == "[", wanted, 0 if part == "[" else None))
    raise AssertionError("a document has no such place")  # pragma: no cover


def _arrived(container: _Container) -> bool:
    return container.wanted is not None and container.at == container.wanted


def _go_on(container: _Container | None) -> None:
    if container is None:
        return
    if isinstance(container.at, int):
        container.at += 1
    container.named = False
