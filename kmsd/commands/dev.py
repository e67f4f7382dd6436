"""`kmsd dev DIR [-- COMMAND...]`: everything embedded under one directory.

The daemon runs in a child process when there is a command to run, because the daemon itself must be able to do
without starting programs; this process holds no key and waits for the command.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kmsd.commands.failures import exit_code_of
from kmsd.config import SOCKET_PATH_BYTES, Config

# Of the names of the sockets in the directory.
_LONGEST_SOCKET = "credential.sock"
# What a shell answers for a command that does not exist, and for one that a signal ended (added to its number).
_EXIT_NOT_FOUND = 127
_EXIT_SIGNAL = 128


class DirectoryError(RuntimeError):
    """The directory cannot be used; the message says why."""


def run_dev(
    directory: Path,
    config: Config,
    *,
    shared: bool,
    accepts_changes: bool,
    recovery_shares: Path | None,
    command: Sequence[str],
) -> int:
    """Run the daemon, and a command beside it if there is one; return the exit code.

    With `recovery_shares`, the store is made with a recovery key, whose shares are written there.
    """

    def serve(ready: Callable[[], None]) -> int:
        return _run_daemon(
            directory,
            config,
            shared=shared,
            accepts_changes=accepts_changes,
            recovery_shares=recovery_shares,
            ready=ready,
        )

    try:
        directory = prepare_directory(directory, shared=shared)
    except DirectoryError as error:
        sys.stderr.write(f"kmsd: error: {error}\n")
        return 1
    if not command:
        return serve(lambda: _say_ready(directory))
    return _run_beside(directory, command, serve)


def prepare_directory(directory: Path, *, shared: bool = False) -> Path:
    """Make the directory, or check that it is this user's own; return its absolute path. Raises DirectoryError."""
    directory = directory.absolute()
    if len(os.fsencode(directory / _LONGEST_SOCKET)) > SOCKET_PATH_BYTES:
        raise DirectoryError(f"{directory}: a socket's path may have {SOCKET_PATH_BYTES} bytes; use a shorter one")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.lstat()
    except OSError as error:
        raise DirectoryError(f"{directory}: {error.strerror}") from None
    if not stat.S_ISDIR(facts.st_mode):
        raise DirectoryError(f"{directory} is a symbolic link; name the directory itself")
    if facts.st_uid != os.getuid():
        raise DirectoryError(f"{directory} belongs to uid {facts.st_uid}, not to you")
    # Sharing lets others reach the socket and nothing else: they may enter, but not list.
    directory.chmod(0o711 if shared else 0o700)
    return directory


def _say_ready(directory: Path) -> None:
    sys.stderr.write(f"kmsd: ready: export KMSD_SOCKET={directory / 'kmsd.sock'}\n")


def _run_daemon(
    directory: Path,
    config: Config,
    *,
    shared: bool,
    accepts_changes: bool,
    recovery_shares: Path | None,
    ready: Callable[[], None],
) -> int:
    # Imported here: beside a command, only the child that becomes the daemon needs any of it.
    from kmsd.identity.peer import IncompleteUidMapError, check_identity_map  # noqa: PLC0415
    from kmsd.server.daemon import run_daemon  # noqa: PLC0415
    from kmsd.server.deployment import development  # noqa: PLC0415

    only_uid = None if shared else os.getuid()
    try:
        check_identity_map()
    except IncompleteUidMapError as error:
        only_uid = os.getuid()
        sys.stderr.write(f"kmsd: warning: {error}; only uid {only_uid} is served\n")
    if os.getuid() == 0:
        sys.stderr.write("kmsd: warning: running as root; an ordinary user is enough to try kmsd\n")
    deployment = development(
        directory, config, shared=shared, only_uid=only_uid, ready=ready, accepts_changes=accepts_changes
    )

    def run() -> None:
        if recovery_shares is None:
            run_daemon(deployment)
            return
        from kmsd.commands.dev_shares import make_shares  # noqa: PLC0415 - hardly anybody needs it

        key = make_shares(deployment.store_path, recovery_shares)
        run_daemon(replace(deployment, recovery_key=key.mapped))

    return exit_code_of(run)


def _run_beside(directory: Path, command: Sequence[str], serve: Callable[[Callable[[], None]], int]) -> int:
    """Run the daemon in a child process and the command in another; the command's exit code is ours.

    `serve` is the daemon, and calls what it is given when it is ready.
    """
    read_end, write_end = os.pipe()
    # Whatever ends this process from now on, also while the daemon starts, ends the daemon first. Held back around the
    # fork: Python drops what a handler raises while it runs its own functions there, and the signal would be lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGTERM, _exit_for_signal)
    parent = os.getpid()
    daemon = os.fork()
    if daemon == 0:
        os.close(read_end)
        _become_daemon(serve, parent=parent, mask=mask, write_end=write_end)
    os.close(write_end)
    status = None
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # A byte comes when the daemon is ready; without one the pipe closes when it is gone, or just about to be.
        if os.read(read_end, 1):
            return _run_command(command, directory / "kmsd.sock")
        _, status = os.waitpid(daemon, 0)
        return _exit_code(status) or 1
    finally:
        if status is None:
            os.kill(daemon, signal.SIGTERM)
            os.waitpid(daemon, 0)


def _become_daemon(
    serve: Callable[[Callable[[], None]], int], *, parent: int, mask: set[int | signal.Signals], write_end: int
) -> NoReturn:
    from kmsd.processes.sandbox import die_with_parent  # noqa: PLC0415 - as in _run_daemon

    code = 1
    try:
        # The command's terminal sends its signals to the whole group; the daemon outlives the command.
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        die_with_parent(parent)
        code = serve(lambda: _tell_ready(write_end))
    finally:
        # Whatever happens, this process never returns into the code of the other.
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def _exit_for_signal(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(_EXIT_SIGNAL + number)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _EXIT_SIGNAL - code


def _tell_ready(write_end: int) -> None:
    os.write(write_end, b"1")
    os.close(write_end)


def _run_command(command: Sequence[str], socket: Path) -> int:
    try:
        process = subprocess.Popen(  # noqa: S603 - to run what it was given is what this verb is for
            list(command), env={**os.environ, "KMSD_SOCKET": str(socket)}
        )
    except OSError as error:
        sys.stderr.write(f"kmsd: error: {command[0]}: {error.strerror}\n")
        return _EXIT_NOT_FOUND
    # The terminal's signals reach the command too, and its end decides.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    return code if code >= 0 else _EXIT_SIGNAL - code
