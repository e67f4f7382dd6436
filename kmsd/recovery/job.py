"""A recovery job: one process that makes the recovery key out of shares, and its heap is gone.

Shares and key are ordinary objects while the package for SLIP-0039 works on them. So the daemon never loads it: the
zygote forks a process for each job, which opens nothing and holds nothing but what it was given.

The job gets descriptors: one end of a SOCK_SEQPACKET socketpair, a page with the shares (length in two bytes,
big-endian, then the text, one share a line), and a page for the key. It answers with one datagram: empty, or what is
wrong with the shares.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from kmsd.memory.page import PAGE_BYTES, Page
from kmsd.recovery import RECOVERY_KEY_BYTES

# The name under which the daemon gives `run_recovery_job` to the zygote.
RECOVERY_ENTRY = "recovery-job"
LENGTH_BYTES = 2
# What the shares may take of their page.
MAX_TEXT_BYTES = PAGE_BYTES - LENGTH_BYTES
# A sentence.
MAX_ANSWER_BYTES = 1024
# What a job says that has written the key; a process that ends says nothing at all.
DONE = b"done"


def run_recovery_job(descriptors: list[int], *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve one request. `ready` is called when all code is loaded, and before a share is met: the time to restrict."""
    # Imported here and nowhere else: the daemon must not have shares in its heap.
    from kmsd.recovery.shares import SharesError, read_shares  # noqa: PLC0415 - see above

    channel_fd, *page_fds = descriptors
    ready()
    with socket.socket(fileno=channel_fd) as channel:
        # Not closed here: that would wipe them for the daemon too, which has yet to read the key. It wipes them.
        shares, key = (Page.from_descriptor(descriptor).view for descriptor in page_fds)
        try:
            key[:RECOVERY_KEY_BYTES] = read_shares(_text(shares)).combine()
            answer = DONE
        except UnicodeDecodeError:
            answer = b"the shares are not text"
        except SharesError as error:
            answer = str(error).encode()
        channel.send(answer)


def _text(page: memoryview) -> str:
    length = int.from_bytes(page[:LENGTH_BYTES], "big")
    return str(page[LENGTH_BYTES : LENGTH_BYTES + length], "utf-8")
