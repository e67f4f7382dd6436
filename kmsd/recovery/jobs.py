"""The recovery key out of shares, without ever having a share or the key in ordinary memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from kmsd.api.errors import DependencyTimeoutError, RecoverySharesError, RecoveryUnavailableError
from kmsd.memory.page import Page
from kmsd.processes.zygote import Child, SpawnError, Zygote, ZygoteGoneError
from kmsd.recovery.job import DONE, LENGTH_BYTES, MAX_ANSWER_BYTES, MAX_TEXT_BYTES, RECOVERY_ENTRY

# It takes a tenth of a second; this is for a machine that does much else.
DEADLINE_SECONDS = 20.0


def shares_page(text: memoryview) -> Page:
    """Return a new page with shares, one a line, as a job expects them. Raises RecoverySharesError: too many."""
    if len(text) > MAX_TEXT_BYTES:
        raise RecoverySharesError(f"recovery shares have at most {MAX_TEXT_BYTES} bytes together")
    page = Page.create()
    with page.view[LENGTH_BYTES : LENGTH_BYTES + len(text)] as room:
        room[:] = text
    page.view[:LENGTH_BYTES] = len(text).to_bytes(LENGTH_BYTES, "big")
    return page


class RecoveryJobs:
    """Combines shares, each time in a process of its own. The zygote's entry `RECOVERY_ENTRY` is `run_recovery_job`."""

    def __init__(self, zygote: Zygote, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._zygote = zygote
        self._deadline_seconds = deadline_seconds

    async def combine(self, shares: Page) -> Page:
        """Return a page that begins with the recovery key (`RECOVERY_KEY_BYTES`), which the caller closes.

        `shares` is a `shares_page`, whose descriptor is closed here. Raises RecoverySharesError, which tells what is
        wrong with them, RecoveryUnavailableError and DependencyTimeoutError. When this ends, so does the process.
        """
        with ExitStack() as unless_done:
            key = unless_done.enter_context(Page.create())
            answer = await self._converse([shares, key])
            if answer != DONE:
                raise RecoverySharesError(answer.decode("utf-8", "replace"))
            unless_done.pop_all()
        return key

    async def _converse(self, pages: Sequence[Page]) -> bytes:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours:
            with theirs:
                child = await self._spawn([theirs.fileno(), *(page.fd for page in pages)])
            # An open descriptor of secret memory could be taken and mapped; the mapping alone cannot.
            for page in pages:
                page.close_descriptor()
            try:
                async with asyncio.timeout(self._deadline_seconds):
                    return await _answer(ours)
            except TimeoutError:
                raise DependencyTimeoutError(
                    f"the shares were not put together within {self._deadline_seconds:g} s: try again"
                ) from None
            finally:
                with suppress(ZygoteGoneError, SpawnError):  # it is gone, or the zygote is beyond being asked
                    await self._zygote.kill(child)

    async def _spawn(self, descriptors: Sequence[int]) -> Child:
        try:
            return await self._zygote.spawn(RECOVERY_ENTRY, descriptors)
        except SpawnError as error:
            raise RecoveryUnavailableError(f"no process for the shares could be started: {error}") from None
        except ZygoteGoneError:
            raise RecoveryUnavailableError("the process that starts others has ended: restart kmsd") from None


async def _answer(channel: socket.socket) -> bytes:
    try:
        answer = await asyncio.get_running_loop().sock_recv(channel, MAX_ANSWER_BYTES)
    except ConnectionResetError:
        answer = b""
    if not answer:
        raise RecoveryUnavailableError("the process that puts the shares together ended before it had: try again")
    return answer
