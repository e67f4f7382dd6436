"""The recovery key of a host that is set up: made, handed out as shares, and seen to open the store.

Shares are in somebody's hands, or durable in files, before a store is made that the key opens. The words exist in
processes that end with this step; to the others goes a page of secret memory with the key.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from kmsd.commands.recovery_choice import SharePlan
from kmsd.commands.service_process import apart, as_service
from kmsd.commands.share_files import ShareFiles
from kmsd.commands.steps import SetupError
from kmsd.config import Config
from kmsd.hsm.root import DOMAIN_KEY_BYTES
from kmsd.memory.arena import CHUNK_BYTES, Arena
from kmsd.memory.mapping import fill_random
from kmsd.memory.page import Page
from kmsd.processes.privileges import Account
from kmsd.recovery import RECOVERY_KEY_BYTES
from kmsd.recovery.shares import read_shares, split
from kmsd.server.deployment import store_path

_TERMINAL = Path("/dev/tty")
# ECMA-48: to the corner, erase all; and xterm's: erase what has scrolled away.
_CLEAR = "\x1b[H\x1b[2J\x1b[3J"
_COLUMNS = 4


class HeldKey:
    """A recovery key in a page of secret memory, for this process and those that are forked from it."""

    def __init__(self) -> None:
        self._page = Page.create()

    def mapped(self) -> memoryview:
        """Return the key where it lies."""
        # A forked process has the descriptor, but not the mapping.
        page = Page.from_descriptor(os.dup(self._page.fd))
        page.close_descriptor()
        return page.view[:RECOVERY_KEY_BYTES]

    def close(self) -> None:
        """Wipe it."""
        self._page.close()


def hand_out(plan: SharePlan, files: ShareFiles | None) -> HeldKey:
    """Make a recovery key and return it when its shares are drafted as `files`, or written down; raises SetupError."""
    if files is not None:
        files.drop_drafts()
        files.check_room()
    key = HeldKey()
    fill_random(key.mapped())
    apart(lambda: _hand_out(plan, bytes(key.mapped()), files))
    return key


def publish(files: ShareFiles, config: Config, account: Account) -> None:
    """Give drafted shares their final names, if there are any; raises SetupError when they do not open the store."""
    if not files.are_drafted():
        return
    key = HeldKey()

    def combine() -> None:
        key.mapped()[:] = files.recovery_key()

    apart(combine)
    try:
        as_service(account, lambda: asyncio.run(_opens(config, key.mapped())))
    except SetupError as error:
        raise SetupError(f"the shares that a run of this left do not open this store ({error}): remove them") from None
    finally:
        key.close()
    files.publish()


def has_keys(config: Config, account: Account) -> bool:
    """Tell whether the store has been made, so that what its recovery key is cannot be decided any more."""
    return store_path(config).exists() and as_service(account, lambda: asyncio.run(_has_keys(config)))


def _hand_out(plan: SharePlan, key: bytes, files: ShareFiles | None) -> None:
    shares = split(key, threshold=plan.threshold, count=plan.count)
    # Seen to work while there is nothing to lose yet.
    for some in (shares[: plan.threshold], shares[-plan.threshold :]):
        if read_shares("\n".join(some)).combine() != key:
            raise SetupError("the shares that were made do not make the key: nothing was done; report this as a bug")
    host = os.uname().nodename
    if files is not None:
        files.draft(shares, plan.threshold, dt.datetime.now(dt.UTC).date().isoformat())
        return
    try:
        with _TERMINAL.open() as keyboard, _TERMINAL.open("w") as screen:
            _show(shares, plan.threshold, host, keyboard, screen)
    except OSError as error:
        raise SetupError(
            f"the shares cannot be shown ({_TERMINAL}: {error.strerror}), so nothing depends on them: have them "
            "written to files with --share-directory"
        ) from None


def _show(shares: Sequence[str], threshold: int, host: str, keyboard: TextIO, screen: TextIO) -> None:
    """Show one share after the other, each until it was written down; nothing but the terminal gets them."""
    try:
        for number, share in enumerate(shares, 1):
            screen.write(
                f"{_CLEAR}Share {number} of {len(shares)} of the recovery key of kmsd on {host}.\n"
                f"Any {threshold} of them open the keys without the token. Write all words down in their order.\n"
                "If another run has to show shares again, only those of the last one count.\n\n"
                f"{_table(share.split())}\nPress Enter when it is written down, and whoever keeps the next may look: "
            )
            screen.flush()
            if not keyboard.readline():
                raise SetupError("the shares were not all written down, so nothing depends on them: run this again")
    finally:
        screen.write(_CLEAR)
        screen.flush()


def _table(words: Sequence[str]) -> str:
    """Return the words numbered, row by row."""
    width = max(map(len, words))
    cells = [f"{number:>4}. {word:<{width}}" for number, word in enumerate(words, 1)]
    rows = ("".join(cells[start : start + _COLUMNS]).rstrip() for start in range(0, len(cells), _COLUMNS))
    return "".join(f"{row}\n" for row in rows)


async def _has_keys(config: Config) -> bool:
    from kmsd.store.sql import SqlStore  # noqa: PLC0415 - the parent of this process does without it

    store = await SqlStore.open(store_path(config))
    try:
        return bool(await store.domain_keys())
    finally:
        await store.close()


async def _opens(config: Config, recovery_key: memoryview) -> bool:
    from kmsd.material.recovery import RecoveryWrap, RecoveryWrapped  # noqa: PLC0415 - as above
    from kmsd.store.sql import SqlStore  # noqa: PLC0415 - as above

    store = await SqlStore.open(store_path(config))
    try:
        rows = await store.domain_keys()
    finally:
        await store.close()
    arena = Arena(CHUNK_BYTES)
    recovery = RecoveryWrap(arena, os.urandom)
    with arena.lease(DOMAIN_KEY_BYTES) as domain_key:
        for row in rows:
            record = RecoveryWrapped(row.domain_key_id, row.generation, row.recovery_wrapped)
            recovery.unwrap_into(record, recovery_key, domain_key.view)
    arena.wipe()
    return True
