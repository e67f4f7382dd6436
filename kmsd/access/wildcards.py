"""The wildcards of policies: `*` stands for any characters, also none, and `?` for exactly one.

A pattern is cut at its `*`. What stands before the first and after the last has a place in a text that fits; what
stands between two is searched, from left to right, each at the first place where it is found: whatever an earlier `*`
could take more, a later one can take as well.
"""

from __future__ import annotations

import re


def has_wildcard(pattern: str) -> bool:
    """Tell whether `pattern` can match more than itself."""
    return "*" in pattern or "?" in pattern


class Wildcard:
    """A pattern, compiled.

    `searched` is how many of its characters are compared again and again: each at most once with each of a text.
    """

    __slots__ = ("_between", "_first", "_last", "_shortest", "searched")

    def __init__(self, pattern: str) -> None:
        first, *others = pattern.split("*")
        self._first = _Part(first)
        self._last = _Part(others[-1]) if others else None
        self._between = [_Part(part) for part in others[:-1] if part]
        self._shortest = len(pattern) - len(others)
        self.searched = sum(part.length for part in self._between)

    def matches(self, text: str) -> bool:
        """Tell whether the whole of `text` fits."""
        if len(text) < self._shortest or not self._first.stands(text, 0):
            return False
        if self._last is None:
            return len(text) == self._shortest
        end = len(text) - self._last.length
        if not self._last.stands(text, end):
            return False
        position = self._first.length
        for part in self._between:
            found = part.search(text, position, end)
            if found < 0:
                return False
            position = found + part.length
        return True


class _Part:
    """What stands between two `*`; of a known length."""

    __slots__ = ("_expression", "_text", "length")

    def __init__(self, text: str) -> None:
        self.length = len(text)
        self._text = text
        self._expression = re.compile(re.escape(text).replace(r"\?", "."), re.DOTALL) if "?" in text else None

    def stands(self, text: str, at: int) -> bool:
        """Tell whether it is found at a place of `text`, of which so much is left."""
        if self._expression is None:
            return text.startswith(self._text, at)
        return self._expression.match(text, at) is not None

    def search(self, text: str, start: int, end: int) -> int:
        """Return the first place between two of `text` where it is found; -1 if there is none."""
        if self._expression is None:
            return text.find(self._text, start, end)
        found = self._expression.search(text, start, end)
        return -1 if found is None else found.start()
