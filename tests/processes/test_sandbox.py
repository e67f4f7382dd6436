"""A process of ours keeps only what it was given."""

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

from kmsd.processes import close_descriptors_except
from kmsd.processes.sandbox import blank_descriptors_except, die_with_parent


def in_child(work: Callable[[], bool]) -> bool:
    """Run `work` in a forked child and return what it returned; False when it raised."""
    pid = os.fork()
    if pid == 0:
        succeeded = False
        try:
            succeeded = work()
        finally:
            os._exit(0 if succeeded else 1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def opened() -> set[int]:
    """The open descriptors, without trust in the code under test."""
    found = set()
    for descriptor in range(4096):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.add(descriptor)
    return found


def test_all_descriptors_but_the_kept_are_closed() -> None:
    """Kept ones stay what they were; 0 to 2 become /dev/null, so that nothing opened later takes their place."""
    read_end, write_end = os.pipe()
    high = os.dup2(read_end, 900, inheritable=False)  # below the usual soft limit of 1,024

    def work() -> bool:
        close_descriptors_except({write_end, high})
        null = Path(os.devnull).stat().st_rdev
        return opened() == {0, 1, 2, write_end, high} and all(os.fstat(number).st_rdev == null for number in range(3))

    assert in_child(work)
    for descriptor in (read_end, write_end, high):
        os.close(descriptor)


def test_a_kept_standard_descriptor_is_left_alone() -> None:
    """A process that was given one of 0 to 2 keeps it, whichever of the three are open before."""
    read_end, write_end = os.pipe()

    def work() -> bool:
        os.dup2(write_end, 1)
        os.close(0)
        close_descriptors_except({1})
        os.write(1, b"x")
        return opened() == {0, 1, 2}

    assert in_child(work)
    assert os.read(read_end, 1) == b"x"
    os.close(read_end)
    os.close(write_end)


def test_blanked_descriptors_stay_taken() -> None:
    """Nothing inherited can be reached, and no number of it is given to something else."""
    read_end, write_end = os.pipe()

    def work() -> bool:
        before = opened()
        blank_descriptors_except({write_end})
        null = Path(os.devnull).stat().st_rdev
        return (
            before <= opened()
            and stat.S_ISFIFO(os.fstat(write_end).st_mode)
            and all(os.fstat(number).st_rdev == null for number in opened() - {write_end})
        )

    assert in_child(work)
    os.close(read_end)
    os.close(write_end)


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    """The parent may die before the kernel was asked to watch it."""
    pid = os.fork()
    if pid == 0:
        die_with_parent(1_000_000_000)
        time.sleep(60)
        os._exit(0)
    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
