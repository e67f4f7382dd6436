"""What depends on a key: told, and agreed to, before something is done by which that would fail."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from kmsd.api.deletion import GET_KEY_LAST_USAGE, GetKeyLastUsageRequest, GetKeyLastUsageResponse
from kmsd.api.errors import AccessDeniedError
from kmsd.api.grants import LIST_GRANTS, GrantListEntry, ListGrantsRequest
from kmsd_client import Client
from kmsd_client.cli.consent import ask, check_for_terminal
from kmsd_client.cli.keys import all_aliases
from kmsd_client.cli.moments import ago, counted, day, now, second
from kmsd_client.cli.terminal import fact_lines, printable

AnswerT = TypeVar("AnswerT")

# The shortest time that a key waits for its destruction: what ran within it may well run again.
_LATELY = dt.timedelta(days=7)
# A key may have 50,000 grants; whoever has so many learns nothing more by their exact number.
_GRANTS_TO_COUNT = 1000
_PAGE_GRANTS = 100  # as many as one request may ask for
_GRANTEES_TO_NAME = 3


def agree(client: Client, name: str, key_id: str, consequences: list[str]) -> None:
    """Show what depends on the key that the user called `name`, and what comes of it; go on only if he types yes."""
    check_for_terminal()
    usage = last_usage(client, key_id)
    lines = [f"what depends on {name}:"]
    lines += [f"  {line}" for line in fact_lines([*_facts(client, key_id), *usage_facts(usage, now())])]
    if usage is not None and (lately := used_lately(usage, now())):
        lines.append(f"{name} {lately}")
    # A person takes his time; the daemon may have been restarted by then.
    client.close()
    sys.stderr.write("".join(f"{printable(line)}\n" for line in [*lines, *consequences]))
    ask("type yes to go on: ", {"yes"}, "nothing was changed")


def last_usage(client: Client, key_id: str) -> GetKeyLastUsageResponse | None:
    """Return what is known of a key's uses, or None to whom may not know."""
    return _if_allowed(lambda: client.call(GET_KEY_LAST_USAGE, GetKeyLastUsageRequest(key_id=key_id)))


def used_lately(usage: GetKeyLastUsageResponse, until: dt.datetime) -> str | None:
    """Return that a key was used within the last days, if it was."""
    last = usage.key_last_usage
    if last is None or last.timestamp < until - _LATELY:
        return None
    return f"was used {ago(last.timestamp, until)} by {last.operation}"


def usage_facts(usage: GetKeyLastUsageResponse | None, until: dt.datetime) -> Iterator[tuple[str, str]]:
    """Yield what is known of a key's uses, for people."""
    if usage is None:
        yield "last use", _unknown("GetKeyLastUsage")
        return
    last = usage.key_last_usage
    if last is None:
        yield "last use", f"none since {day(usage.tracking_start_date)}, when kmsd began to take note of it"
    else:
        yield "last use", f"{ago(last.timestamp, until)}, by {last.operation} ({second(last.timestamp)})"
    for one in usage.material:
        messages = f"{one.encrypted} encrypted, {one.decrypted} decrypted"
        yield f"material {one.number}", f"{messages}, last used {ago(one.last_used, until)}"


def _facts(client: Client, key_id: str) -> Iterator[tuple[str, str]]:
    yield "key", key_id
    aliases = _if_allowed(lambda: all_aliases(client, key_id))
    if aliases is None:
        yield "aliases", _unknown("ListAliases")
    else:
        yield "aliases", ", ".join(alias.alias_name for alias in aliases) or "none"
    grants = _if_allowed(lambda: _some_grants(client, key_id))
    yield "grants", _unknown("ListGrants") if grants is None else _told_grants(grants)


def _some_grants(client: Client, key_id: str) -> list[GrantListEntry]:
    grants: list[GrantListEntry] = []
    marker = None
    while True:
        page = client.call(LIST_GRANTS, ListGrantsRequest(key_id=key_id, limit=_PAGE_GRANTS, marker=marker))
        grants += page.grants
        marker = page.next_marker
        if marker is None or len(grants) >= _GRANTS_TO_COUNT:
            return grants


def _told_grants(grants: list[GrantListEntry]) -> str:
    if not grants:
        return "none"
    grantees = list(dict.fromkeys(one.grantee_principal for one in grants))
    names = ", ".join(grantees[:_GRANTEES_TO_NAME])
    others = len(grantees) - _GRANTEES_TO_NAME
    more = f" and {counted(others, 'other')}" if others > 0 else ""
    count = f"{_GRANTS_TO_COUNT} or more" if len(grants) >= _GRANTS_TO_COUNT else str(len(grants))
    return f"{count}, to {names}{more}"


def _if_allowed(ask_for: Callable[[], AnswerT]) -> AnswerT | None:
    try:
        return ask_for()
    except AccessDeniedError:
        return None


def _unknown(operation: str) -> str:
    return f"unknown: you may not kms:{operation}"
