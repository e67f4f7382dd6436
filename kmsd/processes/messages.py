"""What the daemon and the zygote say to each other: one message a datagram of their SOCK_SEQPACKET pair.

The daemon asks, the zygote answers `Spawned` or `Refused` to each `Spawn`, and says `Exited` once for each child.
Both ends are the same program, forked a moment apart, so there is no versioning.
"""

import msgspec

# A child gets a conversation, a page or two, and files. The kernel passes up to 253 at once (SCM_MAX_FD, net/scm.h),
# but each needs a free place in the zygote.
MAX_DESCRIPTORS = 16
# The longest message is a request with the name of an entry, or a reason with the text of an errno.
MAX_MESSAGE_BYTES = 1024


class Spawn(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Make a child that runs the entry; so many descriptors come along. `number` names request and child from now on.

    Numbers are never used twice, which process ids are.
    """

    number: int
    entry: str
    descriptors: int


class Kill(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Send SIGKILL to the child, unless it has ended."""

    number: int


class Ping(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Say `Pong`."""


class Spawned(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The child runs."""

    number: int
    pid: int


class Refused(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """There is no child of this number."""

    number: int
    reason: str


class Exited(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The child ended; `code` is negative when a signal ended it."""

    number: int
    code: int


class Pong(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The answer to `Ping`: requests are served."""


Request = Spawn | Kill | Ping
Reply = Spawned | Refused | Exited | Pong
