"""The wildcards of policies: `*` stands for any characters, also none, and `?` for exactly one."""

from __future__ import annotations


def has_wildcard(pattern: str) -> bool:
    """Tell whether `pattern` can match more than itself."""
    return "*" in pattern or "?" in pattern


def matches(pattern: str, text: str) -> bool:
    """Tell whether the whole of `text` fits `pattern`.

    Takes at most len(pattern) * len(text) steps: when the text stops fitting, only the last `*` is asked to take one
    character more, since what an earlier one could take the last one can take as well.
    """
    at = position = 0
    star, resume = -1, 0
    while position < len(text):
        wanted = pattern[at] if at < len(pattern) else None
        if wanted == "*":
            star, resume = at, position
            at += 1
        elif wanted in {"?", text[position]}:
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return not pattern[at:].strip("*")
