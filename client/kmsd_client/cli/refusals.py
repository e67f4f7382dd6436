"""A refusal in the words of whoever asked: who may not do what with which key, and how to find out why."""

from __future__ import annotations

import re
from typing import NamedTuple

from kmsd.api.errors import AccessDeniedError

# How the daemon words a refusal by policy (kmsd/access/decision.py), which is AWS's wording.
_SENTENCE = re.compile(
    r"User: (?P<who>.+?) is not authorized to perform: (?P<action>\S+) on resource: (?P<resource>\S+)"
)
_UID = re.compile(r"\buid (\d+)")
# The daemon numbers its requests so that these differ within a run, and takes them for the whole.
_ID_DIGITS = 8


class Refusal(NamedTuple):
    """What was refused, and what to do about it."""

    sentence: str
    hint: str | None


def refusal_of(error: AccessDeniedError, key: str | None) -> Refusal:
    """Return `error` for people; `key` is how they named the key, if they did."""
    said = _SENTENCE.search(error.message)
    if said is None:  # no policy refused it, and the message says all there is
        return Refusal(error.message.removesuffix("."), None)
    uid = _UID.search(said["who"])
    who = f"uid {uid[1]}" if uid else said["who"]
    sentence = f"{who} may not {said['action']} {_named(said['resource'], key)}".rstrip()
    return Refusal(sentence, f"kms why {error.request_id[:_ID_DIGITS]}, or ask an administrator to run it")


def _named(resource: str, key: str | None) -> str:
    if resource == "*":
        return ""
    if ":alias/" in resource:
        return resource[resource.index("alias/") :]
    # A request may be about two keys, of which the command line names one.
    return key if key is not None and ("alias/" in key or resource.endswith(key)) else resource
