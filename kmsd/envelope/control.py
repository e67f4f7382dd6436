"""What the daemon and its file worker say to each other, over a SOCK_SEQPACKET pair; no part of any public interface.

    daemon -> worker   Job, with two descriptors: the page that holds the message key, the worker's end to the client
    worker -> daemon   Started when the client's descriptors are there, then Outcome
    daemon -> worker   Acknowledgement, when the outcome is in the audit trail; then the worker tells the client

Both sides are always of one version, as the worker is forked from the daemon's zygote. The worker's half is trusted
by the daemon no further than its types: a worker meets hostile files.
"""

from __future__ import annotations

import enum

import msgspec

from kmsd.api.failure import Failure
from kmsd.api.shapes import MAX_HEADER_BYTES
from kmsd.envelope.conversation import Count

# The zygote's name for `kmsd.envelope.worker.run_worker`.
WORKER_ENTRY = "file-worker"
# How long a client may take to send its descriptors; it does so at once, unless it is stopped or gone.
START_SECONDS = 30.0
# How long nothing may be read nor written. A worker waits for what a client gave it, and a pipe that is never fed would
# hold it for ever; ten minutes are more than a device, a network file system or a person at a terminal needs to go on.
IDLE_SECONDS = 600.0
# The header, and room for what stands around it.
MAX_JOB_BYTES = MAX_HEADER_BYTES + 4096
# Key page, conversation.
JOB_DESCRIPTORS = 2


class Direction(enum.StrEnum):
    """What is to be done with a file."""

    ENCRYPT = "encrypt"
    DECRYPT = "decrypt"


class Job(msgspec.Struct, frozen=True, tag=True):
    """What to do; `header` is the whole serialized message header."""

    direction: Direction
    header: bytes


class Started(msgspec.Struct, frozen=True, tag=True):
    """The client's descriptors have arrived, so from now on it takes as long as there is progress."""


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """How it ended; lengths in bytes, the message's with its header."""

    plaintext_bytes: Count
    message_bytes: Count
    error: Failure | None


class Acknowledgement(msgspec.Struct, frozen=True, tag=True):
    """The outcome is recorded: tell the client, or tell it `error` instead."""

    error: Failure | None


encode = msgspec.msgpack.Encoder().encode
decode_job = msgspec.msgpack.Decoder(Job).decode
decode_report = msgspec.msgpack.Decoder(Started | Outcome).decode
decode_acknowledgement = msgspec.msgpack.Decoder(Acknowledgement).decode
