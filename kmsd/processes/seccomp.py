"""Filters of system calls: a table of what is allowed becomes a program for the kernel (seccomp(2)).

1. Another architecture than ours (a 32-bit call on x86-64), or x86-64's x32 calls: the process is killed.
2. An allowed call passes, if its arguments are as declared. Only values are seen: what a pointer points to is not, so
   paths are Landlock's business.
3. Calls whose absence the C library knows how to work around, and calls newer than this table: ENOSYS.
4. All others: EPERM. A library that tries what it does not need goes on; a process that was taken over gets nowhere.

The filter is on every thread of the process and of all its children, for ever.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from kmsd.processes.syscalls import NEWEST, SYSCALLS

# linux/seccomp.h
_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1
_FLAG_LOG = 2  # refusals may be logged, if the host wishes so (kernel.seccomp.actions_logged)
_RET_KILL_PROCESS = 0x80000000
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000
# struct seccomp_data: nr (4), arch (4), instruction pointer (8), six arguments (8 each); little-endian on both.
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
# linux/bpf_common.h: load a word, AND with a constant, jump if equal, jump if greater or equal, return.
_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_INSTRUCTION = struct.Struct("HBBI")
# x32 calls have this bit (asm/unistd.h); what is above every number is refused with them.
_X32_BIT = 0x40000000
_WORD = 0xFFFFFFFF

# glibc falls back to the older call for each of these. clone3 and openat2 take their flags from memory, where a filter
# does not see them.
_WORKED_AROUND = ("clone3", "openat2", "faccessat2")


class Machine(NamedTuple):
    """An architecture: its column in the table of calls, and how the kernel's audit names it (linux/audit.h)."""

    column: int
    audit_name: int


MACHINES = {"x86_64": Machine(0, 0xC000003E), "aarch64": Machine(1, 0xC00000B7)}


class Check(NamedTuple):
    """A condition: `mask` of argument number `argument` (from 0) has `value`; both have at most 64 bits."""

    argument: int
    mask: int
    value: int


class Unless(tuple[Check, ...]):
    """Conditions of which none may hold."""

    __slots__ = ()


# The name of a call, and the conditions of which one has to hold; none: it is allowed as it is.
Calls = Mapping[str, tuple[Check, ...]]


class SeccompUnavailableError(RuntimeError):
    """The kernel does not take filters, or not for this machine; the message says why."""


class _Instruction(NamedTuple):
    code: int
    value: int
    if_true: int = 0
    if_false: int = 0

    def encode(self) -> bytes:
        return _INSTRUCTION.pack(self.code, self.if_true, self.if_false, self.value)


def compile_filter(calls: Calls, machine: Machine) -> bytes:
    """Return the program that allows `calls` and nothing else. Names that the machine does not have are passed over."""
    program = _prologue(machine)
    for name, checks in calls.items():
        number = SYSCALLS[name][machine.column]
        if number is not None:
            program += _for_number(number, list(_allowing(checks)))
    program += _absent(_WORKED_AROUND, machine)
    program += [
        _Instruction(_JUMP_AT_LEAST, NEWEST + 1, if_false=1),
        _Instruction(_RETURN, _RET_ERRNO | errno.ENOSYS),
        _Instruction(_RETURN, _RET_ERRNO | errno.EPERM),
    ]
    return _encode(program)


def compile_absence(names: Iterable[str], machine: Machine) -> bytes:
    """Return the program under which the kernel seems not to have these calls; all others are as before."""
    return _encode([*_prologue(machine), *_absent(names, machine), _Instruction(_RETURN, _RET_ALLOW)])


def _encode(program: Iterable[_Instruction]) -> bytes:
    return b"".join(instruction.encode() for instruction in program)


def _prologue(machine: Machine) -> list[_Instruction]:
    """Return what kills the process for a call of another architecture, and then loads the call's number."""
    return [
        _Instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _Instruction(_JUMP_EQUAL, machine.audit_name, if_true=1),
        _Instruction(_RETURN, _RET_KILL_PROCESS),
        _Instruction(_LOAD, _NUMBER_OFFSET),
        _Instruction(_JUMP_AT_LEAST, _X32_BIT, if_false=1),
        _Instruction(_RETURN, _RET_KILL_PROCESS),
    ]


def _absent(names: Iterable[str], machine: Machine) -> list[_Instruction]:
    program: list[_Instruction] = []
    for name in names:
        number = SYSCALLS[name][machine.column]
        if number is not None:
            program += _for_number(number, [_Instruction(_RETURN, _RET_ERRNO | errno.ENOSYS)])
    return program


def _for_number(number: int, block: Collection[_Instruction]) -> list[_Instruction]:
    """Return `block`, which ends with a return, for one call; other calls jump behind it."""
    return [_Instruction(_JUMP_EQUAL, number, if_false=len(block)), *block]


def _allowing(checks: tuple[Check, ...]) -> Iterable[_Instruction]:
    allow, refuse = _RET_ALLOW, _RET_ERRNO | errno.EPERM
    held, otherwise = (refuse, allow) if isinstance(checks, Unless) else (allow, refuse)
    for check in checks:
        yield from _if_holds(check, held)
    yield _Instruction(_RETURN, otherwise if checks else allow)


def _if_holds(check: Check, answer: int) -> list[_Instruction]:
    """Return the instructions that answer the call if the condition holds, and else go on behind them."""
    words = [(check.mask & _WORD, check.value & _WORD, 0), (check.mask >> 32, check.value >> 32, 4)]
    tests = [word for word in words if word[0]]
    program: list[_Instruction] = [_Instruction(_RETURN, answer)]
    for mask, value, offset in reversed(tests):
        program = [
            _Instruction(_LOAD, _ARGUMENTS_OFFSET + 8 * check.argument + offset),
            _Instruction(_AND, mask),
            _Instruction(_JUMP_EQUAL, value, if_false=len(program)),
            *program,
        ]
    return program


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def restrict_calls(calls: Calls) -> None:
    """Allow this process, all its threads and later children, nothing but `calls`; needs no_new_privs.

    Raises SeccompUnavailableError when it is not in force afterwards.
    """
    machine = _this_machine()
    _install(compile_filter(calls, machine), machine)


def hide_calls(names: Iterable[str]) -> None:
    """Let the kernel seem not to have these calls, so that libraries do without; otherwise as `restrict_calls`."""
    machine = _this_machine()
    _install(compile_absence(names, machine), machine)


def _this_machine() -> Machine:
    try:
        return MACHINES[os.uname().machine]
    except KeyError:
        raise SeccompUnavailableError(f"there is no table of system calls for {os.uname().machine}") from None


def _install(code: bytes, machine: Machine) -> None:
    program = _Program(len(code) // _INSTRUCTION.size, code)
    libc = ctypes.CDLL(None, use_errno=True)
    number = SYSCALLS["seccomp"][machine.column]
    result = libc.syscall(
        ctypes.c_long(number or 0),
        ctypes.c_ulong(_SET_MODE_FILTER),
        ctypes.c_ulong(_FLAG_TSYNC | _FLAG_LOG),
        ctypes.byref(program),
    )
    if result < 0:
        raise SeccompUnavailableError(f"seccomp(2) failed: {os.strerror(ctypes.get_errno())}")
    if result > 0:  # the id of a thread that could not be brought under the filter (seccomp(2), TSYNC)
        raise SeccompUnavailableError(f"the thread {result} has a filter of its own")
