"""What holds a process of ours in: each protection put on in its order, and a look at whether it is there.

1. While there is one thread: no capabilities, few descriptors, no new code, no swap, files restricted by Landlock.
2. When all that the process needs from outside is open: system calls restricted by seccomp, on every thread.
3. `report` looks at what is in force; it believes the kernel, not what was attempted.

What cannot be put on is remembered with the reason, or, where the administrator requires it, ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kmsd.processes.capabilities import drop_capabilities, held_capabilities
from kmsd.processes.landlock import LandlockUnavailableError, Reach, restrict_files
from kmsd.processes.landlock import version as landlock_version
from kmsd.processes.seccomp import Calls, SeccompUnavailableError, hide_calls, restrict_calls
from kmsd.processes.swap import SwapPossibleError, rule_out_swap

# linux/prctl.h
_PR_GET_DUMPABLE, _PR_GET_SECCOMP, _PR_GET_NO_NEW_PRIVS = 3, 21, 39
_PR_SET_MDWE, _PR_GET_MDWE, _MDWE_REFUSE_EXEC_GAIN = 65, 66, 1
_SECCOMP_MODE_FILTER = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Protection(enum.StrEnum):
    """What a process can be protected by."""

    UNDUMPABLE = "not dumpable"
    NO_CORE = "no core file"
    NO_NEW_PRIVILEGES = "no new privileges"
    NO_CAPABILITIES = "no capabilities"
    NO_NEW_CODE = "no new code"
    NO_SWAP = "no swap"
    FILES = "files restricted"
    CALLS = "system calls restricted"
    SECRET_MEMORY = "secret memory"  # noqa: S105 - the name of a protection


class State(enum.StrEnum):
    """Whether a protection is there; unavailable: this kernel does not have it."""

    ON = "on"
    OFF = "off"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True)
class Finding:
    """A protection of a kind of process as it was found, and the reason where there is something to say."""

    process: str
    protection: Protection
    state: State
    reason: str = ""


def missing(findings: Iterable[Finding]) -> list[Finding]:
    """Return the protections that are not there, for whatever reason."""
    return [finding for finding in findings if finding.state is not State.ON]


class ConfinementError(RuntimeError):
    """A protection that is required cannot be had; the message names it and the reason."""


class Confinement:
    """The restrictions of one kind of process, called `name`.

    `calls` gives the system calls it may make and `reach` the files it may open, None for all that its user may.
    `new_code` permits to make memory executable that was writable, which vendors' modules may need. `descriptors` is
    how many it may have open, and `hidden` names calls that libraries are to do without from the start. With
    `required`, what cannot be put on raises ConfinementError.
    """

    def __init__(
        self,
        name: str,
        calls: Callable[[], Calls],
        *,
        reach: Callable[[], Reach] | None,
        required: bool,
        new_code: bool = False,
        descriptors: int | None = None,
        hidden: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self._calls = calls
        self._reach = reach
        self._required = required
        self._new_code = new_code
        self._descriptors = descriptors
        self._hidden = hidden
        self._filtered = False
        self._reasons: dict[Protection, tuple[State, str]] = {}

    def restrict_process(self) -> None:
        """Put on what has to be there before a second thread is."""
        with self._attempt(Protection.NO_CAPABILITIES):
            drop_capabilities()
        if self._descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors, self._descriptors))
        if not self._new_code:
            with self._attempt(Protection.NO_NEW_CODE):
                _refuse_new_code()
        with self._attempt(Protection.NO_SWAP):
            self._reasons[Protection.NO_SWAP] = (State.ON, rule_out_swap())
        if self._hidden:
            with self._attempt(Protection.CALLS):
                hide_calls(self._hidden)
        if self._reach is not None:
            with self._attempt(Protection.FILES):
                restrict_files(self._reach())
                self._reasons[Protection.FILES] = (State.ON, f"Landlock version {landlock_version()}")

    def restrict_calls(self) -> None:
        """Put on the filter of system calls, after which the process opens nothing that its list does not let it."""
        with self._attempt(Protection.CALLS):
            restrict_calls(self._calls())
            self._filtered = True

    def enter(self) -> None:
        """Put on everything, in a process that needs nothing in between."""
        self.restrict_process()
        self.restrict_calls()

    @contextlib.contextmanager
    def _attempt(self, protection: Protection) -> Iterator[None]:
        try:
            yield
        except (OSError, LandlockUnavailableError, SeccompUnavailableError, SwapPossibleError) as error:
            absent = isinstance(error, LandlockUnavailableError | SeccompUnavailableError) or (
                isinstance(error, OSError) and error.errno in {errno.EINVAL, errno.ENOSYS}
            )
            self._reasons[protection] = (State.UNAVAILABLE if absent else State.OFF, str(error))
            if self._required:
                raise ConfinementError(f"{self.name}: {protection}: {error}") from error

    def report(self) -> tuple[Finding, ...]:
        """Return every protection of this process as it is now."""
        facts = {
            Protection.UNDUMPABLE: _prctl(_PR_GET_DUMPABLE) == 0,
            Protection.NO_CORE: resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
            Protection.NO_NEW_PRIVILEGES: _prctl(_PR_GET_NO_NEW_PRIVS) == 1,
            Protection.NO_CAPABILITIES: held_capabilities() == 0,
            Protection.NO_SWAP: self._reasons.get(Protection.NO_SWAP, (State.OFF, ""))[0] is State.ON,
            # A filter of somebody else's, of the unit or a container, looks the same.
            Protection.CALLS: self._filtered and _prctl(_PR_GET_SECCOMP) == _SECCOMP_MODE_FILTER,
        }
        if not self._new_code:
            facts[Protection.NO_NEW_CODE] = bool(max(_prctl(_PR_GET_MDWE), 0) & _MDWE_REFUSE_EXEC_GAIN)
        if self._reach is not None:
            facts[Protection.FILES] = not _opens_root()
        return tuple(self._finding(protection, there=there) for protection, there in facts.items())

    def _finding(self, protection: Protection, *, there: bool) -> Finding:
        state, reason = self._reasons.get(protection, (State.OFF, ""))
        if there:
            # A protection may come from elsewhere, such as the unit, where this process could not put it on.
            return Finding(self.name, protection, State.ON, reason if state is State.ON else "")
        return Finding(self.name, protection, State.OFF if state is State.ON else state, reason)


def _refuse_new_code() -> None:
    """Refuse memory that is writable and executable, or becomes executable after it was writable (Linux 6.3)."""
    zero = ctypes.c_ulong(0)
    if _libc.prctl(_PR_SET_MDWE, ctypes.c_ulong(_MDWE_REFUSE_EXEC_GAIN), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"PR_SET_MDWE: {os.strerror(number)}; it needs Linux 6.3")


def _prctl(option: int) -> int:
    zero = ctypes.c_ulong(0)
    return int(_libc.prctl(option, zero, zero, zero, zero))


def _opens_root() -> bool:
    """Tell whether the root folder, which is in nobody's reach, can be opened."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
