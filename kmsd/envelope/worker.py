"""A file worker: a process that encrypts or decrypts one file, and then ends.

1. Get a job from the daemon: header, key page, the conversation's end. It may never come (a spare worker).
2. Get `Start` with source and destination from the client.
3. Run the pipeline; this thread meanwhile listens for either peer's leaving and reports progress.
4. Tell the daemon the outcome and wait until it is in the audit trail.
5. Tell the client.

The client's descriptors may be anything: only the pipeline's threads touch them, so that this thread always listens.
The daemon's leaving ends the process at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable

from kmsd.api.errors import FileAccessError, KmsError, KMSInternalError, ProtocolError
from kmsd.api.failure import Failure
from kmsd.envelope import control, conversation
from kmsd.envelope.control import Acknowledgement, Direction, Job, Outcome, Started
from kmsd.envelope.conversation import Done, Progress, Report
from kmsd.envelope.descriptors import Sink, Source
from kmsd.envelope.header import KEY_BYTES, parse_header
from kmsd.envelope.pipeline import Pipeline
from kmsd.envelope.stages import EncryptingStage, Stage, decrypting_stage
from kmsd.memory.page import Page

# Behind interactive work and behind the daemon (DESIGN 10).
_NICE = 10
_PROGRESS_MILLISECONDS = 100
# How often in the time that a file may stand still it is looked whether it does; so much too late it may be noticed.
_IDLE_LOOKS = 10
# For a client that does not read: its socket holds far more than one file's reports.
_TELL_SECONDS = 5.0
_CLIENT_GONE = "the client went away before the file was complete"


class PeerGoneError(Exception):
    """The other end is closed. When it is the daemon's, nobody is left to work for."""


def run_worker(
    descriptors: list[int], *, ready: Callable[[], None] = lambda: None, idle_seconds: float = control.IDLE_SECONDS
) -> None:
    """Serve one file; `descriptors` is the worker's end of the control socket. Made to be a zygote's entry.

    `ready` is called when the process has its threads and descriptors, and before it meets a file: the time to
    restrict it. A file of which nothing is read or written for `idle_seconds` fails.
    """
    os.nice(_NICE)
    # A service manager that stops the daemon may signal all its processes; files under way have the daemon's grace.
    # What ends a worker is the end of its control socket, or SIGKILL.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipeline = Pipeline()
    ready()
    with socket.socket(fileno=descriptors[0]) as daemon:
        try:
            _serve(daemon, pipeline, idle_seconds)
        except (PeerGoneError, ConnectionError):
            return


def _serve(daemon: socket.socket, pipeline: Pipeline, idle_seconds: float) -> None:
    data, (page_fd, conversation_fd) = _receive(daemon, control.MAX_JOB_BYTES, control.JOB_DESCRIPTORS)
    page = Page.from_descriptor(page_fd)
    page.close_descriptor()
    with socket.socket(fileno=conversation_fd) as client:
        work = _Work(daemon, client, pipeline, idle_seconds)
        failure: Failure | None = None
        try:
            work.run(control.decode_job(data), page.view[:KEY_BYTES])
        except KmsError as error:
            failure = Failure.of(error)
        except (PeerGoneError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 - the client must hear of it and the daemon must record it
            failure = Failure.of(KMSInternalError(f"the file worker failed unexpectedly ({type(error).__name__})"))
        # Before the outcome: the daemon wipes the key page when it has that, and nothing made with a wiped key may
        # ever be written.
        pipeline.stop()
        outcome = work.outcome(failure)
        daemon.send(control.encode(outcome))
        acknowledgement = _receive_acknowledgement(daemon)
        _tell(client, outcome, acknowledgement)


class _Work:
    """One job, from its start to its outcome."""

    def __init__(self, daemon: socket.socket, client: socket.socket, pipeline: Pipeline, idle_seconds: float) -> None:
        self._daemon = daemon
        self._client = client
        self._pipeline = pipeline
        self._idle_seconds = idle_seconds
        self._direction = Direction.ENCRYPT
        self._header_bytes = 0
        self._source: Source | None = None
        self._sink: Sink | None = None

    def run(self, job: Job, message_key: memoryview) -> None:
        """Do it; raises KmsError, PeerGoneError."""
        self._direction = job.direction
        header, self._header_bytes = parse_header(job.header)
        start, source_fd, destination_fd = self._receive_start()
        self._daemon.send(control.encode(Started()))
        self._source, self._sink = Source(source_fd), Sink(destination_fd)
        stage: Stage
        if job.direction is Direction.ENCRYPT:
            stage = EncryptingStage(header, job.header, message_key, self._source)
        else:
            stage = decrypting_stage(header, message_key, self._source)
        self._pipeline.start(stage, self._source, self._sink)
        self._attend(start)
        error = self._pipeline.result()
        if error is not None:
            raise error

    def outcome(self, failure: Failure | None) -> Outcome:
        """Return what came of it."""
        taken, given = self._moved()
        if self._direction is Direction.ENCRYPT:
            return Outcome(taken, given, failure)
        return Outcome(given, self._header_bytes + taken, failure)

    def _moved(self) -> tuple[int, int]:
        """Return how many bytes were read and written."""
        return self._source.taken if self._source else 0, self._sink.given if self._sink else 0

    def _receive_start(self) -> tuple[conversation.Start, int, int]:
        poll = select.poll()
        poll.register(self._daemon, select.POLLIN)
        poll.register(self._client, select.POLLIN)
        ready = dict(poll.poll(control.START_SECONDS * 1000))
        if self._daemon.fileno() in ready:
            raise PeerGoneError
        if not ready:
            raise FileAccessError(f"the client sent no descriptors for {control.START_SECONDS:.0f} s")
        try:
            data, descriptors = _receive(self._client, conversation.MAX_DATAGRAM_BYTES, conversation.START_DESCRIPTORS)
        except (PeerGoneError, ConnectionError):
            raise FileAccessError(_CLIENT_GONE) from None
        return conversation.decode_start(data), descriptors[0], descriptors[1]

    def _attend(self, start: conversation.Start) -> None:
        """Wait for the pipeline's end, and for whatever should end it earlier."""
        poll = select.poll()
        for watched in (self._daemon, self._client, self._pipeline.finished_fd):
            poll.register(watched, select.POLLIN)
        told = -1
        moved, moved_at = self._moved(), time.monotonic()
        interval = _PROGRESS_MILLISECONDS if start.progress else self._idle_seconds * 1000 / _IDLE_LOOKS
        while True:
            ready = dict(poll.poll(interval))
            if self._daemon.fileno() in ready:
                raise PeerGoneError
            if self._pipeline.finished_fd in ready:
                return
            if self._client.fileno() in ready:
                raise self._interruption()
            if (now_moved := self._moved()) != moved:
                moved, moved_at = now_moved, time.monotonic()
            elif time.monotonic() - moved_at >= self._idle_seconds:
                raise FileAccessError(
                    f"nothing could be read from the source or written to the destination for {self._idle_seconds:g} s"
                )
            if start.progress and moved[0] != told:
                told = moved[0]
                self._report_progress(Progress(told, start.size))

    def _interruption(self) -> KmsError:
        """Return why the client spoke up, though nothing more is expected of it."""
        try:
            said = self._client.recv(1)
        except ConnectionError:
            said = b""
        return ProtocolError("nothing may follow the start") if said else FileAccessError(_CLIENT_GONE)

    def _report_progress(self, progress: Progress) -> None:
        try:
            self._client.send(conversation.encode(Report(progress=progress)), socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # the client does not read just now; the next report says more anyway
        except ConnectionError:
            raise FileAccessError(_CLIENT_GONE) from None


def _receive(peer: socket.socket, limit: int, count: int) -> tuple[bytes, list[int]]:
    """Return a datagram and its `count` descriptors; raises ProtocolError, and PeerGoneError at the end."""
    # Room for exactly those expected: the kernel drops others and says so by MSG_CTRUNC.
    data, descriptors, flags, _ = socket.recv_fds(peer, limit, count, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise PeerGoneError
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or len(descriptors) != count:
        # Descriptors that came are closed when this process ends, which is soon.
        raise ProtocolError(f"expected one datagram with {count} descriptors")
    return data, descriptors


def _receive_acknowledgement(daemon: socket.socket) -> Acknowledgement:
    data = daemon.recv(conversation.MAX_DATAGRAM_BYTES)
    if not data:
        raise PeerGoneError
    return control.decode_acknowledgement(data)


def _tell(client: socket.socket, outcome: Outcome, acknowledgement: Acknowledgement) -> None:
    """Tell the client the outcome; that it may be gone matters to nobody now."""
    error = acknowledgement.error or outcome.error
    done = None if error else Done(outcome.plaintext_bytes, outcome.message_bytes)
    client.settimeout(_TELL_SECONDS)
    try:
        client.send(conversation.encode(Report(done=done, error=error)))
    except (ConnectionError, TimeoutError):
        return
