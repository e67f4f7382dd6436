"""What each kind of process may ask of the kernel: the daemon, the zygote and its children.

Every list is made of what the process does after its start, and nothing else: the names of calls stand with what they
are for. Nobody executes programs, traces, signals strangers, takes their descriptors or memory, mounts, makes
namespaces, loads code into the kernel or keeps keys in it; only the zygote forks, and only it sends signals.
"""

from __future__ import annotations

import os
import socket

from kmsd.processes.seccomp import Calls, Check, Unless

_WORD = 0xFFFFFFFF
_EVERYTHING = 0xFFFF_FFFF_FFFF_FFFF
# linux/sched.h
_CLONE_THREAD = 0x00010000
# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_NAMESPACES = (
    0x00000080 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
)
# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_NAME, _PR_GET_SECCOMP = 1, 3, 15, 21
_PR_CAPBSET_READ, _PR_GET_NO_NEW_PRIVS, _PR_SET_NO_NEW_PRIVS = 23, 39, 38
_PR_SET_MDWE, _PR_GET_MDWE, _PR_SET_VMA = 65, 66, 0x53564D41
_PR_SET_DUMPABLE, _PR_CAP_AMBIENT, _PR_CAPBSET_DROP = 4, 47, 24
# asm-generic/ioctls.h: is it a terminal; close-on-exec off and on; non-blocking; how much can be read.
_TCGETS, _FIONCLEX, _FIOCLEX, _FIONBIO, _FIONREAD = 0x5401, 0x5450, 0x5451, 0x5421, 0x541B
# Devices are spoken to by ioctl(2), but for these: who is sent signals (FIOSETOWN, SIOCSPGRP, FIOASYNC), and what a
# terminal would take for typed or for its own (TIOCSTI, TIOCLINUX, TIOCSCTTY).
_IOCTL_REFUSED = (0x8901, 0x8902, 0x5452, 0x5412, 0x541C, 0x540E)
# Of fcntl(2): descriptors and their flags (F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC), locks (F_GETLK to F_SETLKW, and those
# of open files), seals. Not who is sent signals (F_SETOWN, F_SETSIG), by which any process of the uid could be killed.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1033, 1034)
# asm-generic/mman-common.h, linux/stat.h
_PROT_EXEC = 0x4
_SET_ID_BITS = 0o6000
# Pairs whose ends speak to each other only: an end of a pair of datagram sockets can be made to send to anybody's.
_PAIRS = (Check(1, 0xF, socket.SOCK_STREAM), Check(1, 0xF, socket.SOCK_SEQPACKET))
# asm-generic/fcntl.h: everything by which open(2) can write: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND; O_TMPFILE's
# own bit is O_DIRECTORY's neighbour and differs by architecture, but it does nothing without O_WRONLY or O_RDWR.
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000


def _any(names: str) -> dict[str, tuple[Check, ...]]:
    return dict.fromkeys(names.split(), ())


def _one_of(argument: int, *values: int) -> tuple[Check, ...]:
    return tuple(Check(argument, _WORD, value) for value in values)


def _base() -> dict[str, tuple[Check, ...]]:
    """Return what every process of ours does: work in memory, on open descriptors, with its threads, until it ends."""
    return {
        **_any("read readv write writev close fstat newfstatat lseek dup dup2 dup3"),
        "fcntl": _one_of(1, *_FCNTL),
        **_any("mmap munmap mprotect mremap madvise brk mlock mlock2 munlock memfd_secret"),
        **_any("futex rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall"),
        **_any("set_robust_list get_robust_list rseq membarrier sched_yield sched_getaffinity getcpu"),
        **_any("clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom uname sysinfo"),
        **_any("getpid gettid getppid getuid geteuid getgid getegid getgroups getrusage times capget"),
        **_any("poll ppoll select pselect6 recvmsg recvfrom sendmsg sendto shutdown"),
        **_any("getsockopt setsockopt getsockname getpeername exit exit_group"),
        # abort(3) signals its own process, and nobody else.
        "tgkill": _one_of(0, os.getpid()),
        "prctl": _one_of(
            0, _PR_GET_DUMPABLE, _PR_SET_NAME, _PR_GET_SECCOMP, _PR_GET_NO_NEW_PRIVS, _PR_GET_MDWE, _PR_SET_VMA
        ),
        # Reading limits is harmless, setting them is not: the pointer to new ones has to be null.
        "prlimit64": (Check(2, _EVERYTHING, 0),),
        "getrlimit": (),
        # Python asks of each file that it opens whether it is a terminal.
        "ioctl": _one_of(1, _TCGETS, _FIONCLEX, _FIOCLEX, _FIONBIO, _FIONREAD),
    }


# linux/pidfd.h: which control group a process is in, with the first version of the structure.
_PIDFD_GET_INFO = 0xC040FF0B
_THREADS = {"clone": (Check(0, _CLONE_THREAD, _CLONE_THREAD),), "set_tid_address": ()}
_FILES_READ = _any(
    "openat open readlink readlinkat stat lstat statx access faccessat getdents64 pread64 fstatfs statfs"
)
# Modes, owners and times of files are set by path, which Landlock does not restrict: only the mode of an open file, and
# never so that a program gains rights by it.
_FILES_WRITTEN = {
    **_any(
        "pwrite64 ftruncate fallocate fsync fdatasync flock mkdir mkdirat rename renameat renameat2 unlink unlinkat"
    ),
    **_any("rmdir umask msync fadvise64 sync_file_range getcwd"),
    "fchmod": (Check(1, _SET_ID_BITS, 0),),
}


# Of who has loaded all its code, and may be handed a file full of another.
_NO_MORE_CODE = dict.fromkeys(("mmap", "mprotect"), (Check(2, _PROT_EXEC, 0),))

# Of who reads files: no open(2) that could write.
_READING_ONLY = {"openat": (Check(2, _WRITING, 0),), "open": (Check(1, _WRITING, 0),)}


def worker_calls() -> Calls:
    """Return the calls of a file worker whose threads exist.

    It opens nothing, and reads and writes the descriptors that it was given.
    """
    return {**_base(), **_any("pread64 pwrite64 fstatfs"), **_NO_MORE_CODE}


def recovery_calls() -> Calls:
    """Return the calls of who puts a recovery key together: it opens nothing, and computes."""
    return {**_base(), **_NO_MORE_CODE}


def daemon_calls() -> Calls:
    """Return the calls of the daemon once it serves: event loop, store, trail, secret memory, pairs of sockets.

    It makes no other sockets, so it connects to nobody and listens to nobody else.
    """
    return {
        **_base(),
        **_THREADS,
        **_FILES_READ,
        **_FILES_WRITTEN,
        **_any("epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 pipe2 accept accept4"),
        **_any("memfd_create pidfd_open wait4 waitid"),
        "socketpair": _PAIRS,
        "ioctl": (*_base()["ioctl"], *_one_of(1, _PIDFD_GET_INFO)),
    }


def job_calls(*, local: bool, network: bool) -> Calls:
    """Return the calls of a token job: what a PKCS#11 module may need, which is files, threads and devices.

    `local` lets it make Unix sockets, `network` also those of the network.
    """
    families = [socket.AF_UNIX] if local or network else []
    if network:
        families += [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK]
    connecting = {"socket": _one_of(0, *families), **_any("connect bind sendmmsg recvmmsg")} if families else {}
    return {
        **_base(),
        **_THREADS,
        **_FILES_READ,
        **_FILES_WRITTEN,
        **connecting,
        **_any("eventfd2 pipe2 epoll_create1 epoll_ctl epoll_wait epoll_pwait sched_getparam sched_getscheduler"),
        **_any("sched_get_priority_max sched_get_priority_min memfd_create link linkat getpgrp"),
        "socketpair": _PAIRS,
        "ioctl": Unless(Check(1, _WORD, request) for request in _IOCTL_REFUSED),
    }


def program_calls() -> Calls:
    """Return the calls of who tells which program a process runs: it reads links, and opens nothing."""
    return {**_base(), **_any("readlink readlinkat")}


def cgroup_calls() -> Calls:
    """Return the calls of who tells which control group a process is in: it reads files and folders."""
    return {**_base(), **_FILES_READ, **_READING_ONLY, **_NO_MORE_CODE}


def lookup_calls() -> Calls:
    """Return the calls of who asks the name service: it reads files and connects to this host's name services."""
    return {
        **_base(),
        **_THREADS,
        **_FILES_READ,
        **_READING_ONLY,
        "socket": _one_of(0, socket.AF_UNIX),
        **_any("connect eventfd2 epoll_create1 epoll_ctl epoll_wait epoll_pwait getcwd flock"),
    }


def zygote_calls(*, network: bool) -> Calls:
    """Return the calls of the zygote: it forks, and each child then restricts itself to its own part of all this."""
    return {
        **lookup_calls(),
        **daemon_calls(),
        **job_calls(local=True, network=network),
        # A child's process id is not known here. The child's own filter allows its own only.
        "tgkill": (),
        "clone": (Check(0, _CLONE_NAMESPACES, 0),),
        **_any("kill setpgid setpriority getpriority rt_sigtimedwait close_range prlimit64 setrlimit mlockall"),
        **_any("landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp capset"),
        "prctl": (
            *_base()["prctl"],
            *_one_of(
                0,
                _PR_SET_PDEATHSIG,
                _PR_SET_DUMPABLE,
                _PR_SET_NO_NEW_PRIVS,
                _PR_SET_MDWE,
                _PR_CAP_AMBIENT,
                _PR_CAPBSET_DROP,
                _PR_CAPBSET_READ,
            ),
        ),
    }
