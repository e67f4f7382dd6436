"""JSON text to plain values, within bounds: what is refused before a policy's grammar is looked at.

1. At most MAX_BYTES, and only the characters that AWS lets into a policy.
2. Nesting of at most MAX_DEPTH, found by a scan that does not recurse.
3. JSON as RFC 8259 has it: no NaN, and no member twice in an object (parsers differ in which one they take, so that a
   reader may see another policy than the daemon).

Every refusal tells line and column, both counted from 1.
"""

from __future__ import annotations

import json
import re
from typing import Any, Self

from kmsd.access.places import line_and_column
from kmsd.api.errors import LimitExceededError, MalformedPolicyDocumentError

# AWS's quota for a key policy document.
MAX_BYTES = 32_768
# Document, statements, statement, conditions, operator, values: a policy has no deeper place.
MAX_DEPTH = 6

# The characters of the AWS model's PolicyType.
_FOREIGN = re.compile(r"[^\t\n\r\x20-\xff]")
# Strings (to be passed over), brackets, and the constants that Python reads beside JSON's. The quantifier never gives
# back and the closing quote may be missing, so that a string that does not end is passed over once, not once for each
# quote in it; the JSON parser has the better message for it.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\]]|NaN|-?Infinity', re.DOTALL)
# Python's messages that do not tell a person what to look for, by how they begin.
_PROBLEMS = {
    "Expecting value": "a value has to begin here (no comma goes before a bracket)",
    "Expecting property name": "a member's name in double quotes has to begin here (no comma goes before a bracket)",
    "Expecting ',' delimiter": "a comma or the closing bracket is missing here",
    "Expecting ':' delimiter": "a colon is missing here",
    "Extra data": "the document has ended before this",
    "Invalid control character": "a string has neither line ends nor tabs; is its closing quote missing?",
    "Invalid \\": "the backslash begins no escape that JSON has",
    "Unterminated string": "the string that begins here does not end",
}
_MEMBER_FOLLOWS = re.compile(r"[ \t\n\r]*:")


class _RepeatedMemberError(ValueError):
    """An object has a member twice."""


class Number(float):
    """A number of a document, with the `text` that it is in it: a float alone would not be exact."""

    text: str

    def __new__(cls, text: str) -> Self:
        """Read what JSON takes for a number."""
        number = super().__new__(cls, text)
        number.text = text
        return number


def read_document(text: str) -> dict[str, Any]:
    """Return the JSON object that `text` holds; its numbers are of the type Number.

    Raises LimitExceededError when it is too long and MalformedPolicyDocumentError for everything else.
    """
    # No character takes less than a byte, so a text that is far too long is never encoded.
    if len(text) > MAX_BYTES or len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise LimitExceededError(f"A policy document may have at most {MAX_BYTES} bytes.")
    if foreign := _FOREIGN.search(text):
        raise _refusal(text, foreign.start(), f"the character U+{ord(foreign.group()):04X} is not allowed")
    _scan(text)
    try:
        # No number as an integer: Python takes quadratic time for long ones.
        document = json.loads(text, object_pairs_hook=_members, parse_int=Number, parse_float=Number)
    except _RepeatedMemberError:
        raise _repetition(text) from None
    except json.JSONDecodeError as error:
        raise _refusal(text, error.pos, _problem(error.msg)) from None
    if not isinstance(document, dict):
        raise _refusal(text, 0, "a policy is a JSON object")
    return document


def _refusal(text: str, position: int, problem: str) -> MalformedPolicyDocumentError:
    return MalformedPolicyDocumentError(f"{line_and_column(text, position)}: {problem}")


def _problem(message: str) -> str:
    return next((words for beginning, words in _PROBLEMS.items() if message.startswith(beginning)), message)


def _scan(text: str) -> None:
    depth = 0
    for token in _TOKEN.finditer(text):
        match token.group()[0]:
            case "{" | "[":
                depth += 1
                if depth > MAX_DEPTH:
                    raise _refusal(text, token.start(), f"nested more than {MAX_DEPTH} deep")
            case "}" | "]":
                depth -= 1
            case "N" | "I" | "-":
                raise _refusal(text, token.start(), f"{token.group()} is not JSON")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _RepeatedMemberError
    return members


def _repetition(text: str) -> MalformedPolicyDocumentError:
    """Return the refusal of the first repeated member of `text`, which is valid JSON up to the end of its object."""
    objects: list[set[str]] = []
    for token in _TOKEN.finditer(text):
        match token.group()[0]:
            case "{":
                objects.append(set())
            case "}":
                objects.pop()
            case '"' if _MEMBER_FOLLOWS.match(text, token.end()):
                name = json.loads(token.group())
                if name in objects[-1]:
                    return _refusal(text, token.start(), f"the member {name!a:.80} appears twice in one object")
                objects[-1].add(name)
    raise AssertionError("the JSON parser found a repeated member and the scan did not")  # pragma: no cover
