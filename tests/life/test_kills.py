"""A kill before, amid or after any disk call of a rotation or a destruction leaves one of its two legal states.

`make test` kills at a sample of them that a fresh seed draws, `make crash` in each way at each.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable

import pytest

from tests.life.clock import DAY
from tests.life.daemon import Kill
from tests.life.deeds import (
    cancel_deletion,
    create_alias,
    encrypt,
    encrypt_file,
    rotate,
    rotate_every,
    schedule_deletion,
)
from tests.life.host import Forge
from tests.life.pair import Fall, Pair
from tests.support.faulty_disk import KILLS, Act

SEED = int(os.environ.get("KMSD_CAMPAIGN_SEED", str(random.SystemRandom().randrange(10**6))))
IS_THOROUGH = int(os.environ.get("KMSD_CRASH_KILLS", "0")) >= 1000
# In `make test` at every so many calls, in one of the ways: a kill takes some 0.2 s.
STRIDE = 1 if IS_THOROUGH else 6
# So far the wall clock is behind when the service starts again, so that nothing mends what the kill left before it is
# seen; and no longer when that was compared.
SET_BACK = -365 * DAY
ALIAS = "alias/doomed"
PLAINTEXT = b"works"
# One of AWS' bounds each.
WINDOW_DAYS, PERIOD_DAYS = 7, 90
WARNED_DAYS = 4
# Each of the deeds makes some 20 to 160.
FEWEST_CALLS = 15
# The line of its beginning, that of its end, and what syncs them.
CALLS_OF_A_FILE = 3


class Life:
    """A host with a key that something is done with, amid which the service is killed, and another key."""

    def __init__(self, forge: Forge) -> None:
        self.pair = Pair(forge)
        self._create()
        self.key = self._create()
        self.pair.ask(create_alias(ALIAS, self.key))

    def _create(self) -> str:
        """Make a key, and encrypt something."""
        key = self.pair.create_key()
        assert key is not None
        answer = self.pair.ask(encrypt(key, PLAINTEXT))
        assert answer is not None
        self.pair.keep(answer, PLAINTEXT, answer.response.ciphertext_blob)
        return key

    def rotate(self) -> None:
        self.pair.ask(rotate(self.key))

    def let_rotate(self) -> None:
        self.pair.ask(rotate_every(self.key, PERIOD_DAYS))

    def schedule_deletion(self) -> None:
        self.pair.ask(schedule_deletion(self.key, WINDOW_DAYS))

    def cancel_deletion(self) -> None:
        self.pair.ask(cancel_deletion(self.key))

    def warn(self) -> None:
        """Let the time come at which its destruction is near."""
        self.pair.pass_time(WARNED_DAYS * DAY)

    def destroy(self) -> None:
        """Let the date of its destruction come."""
        self.pair.pass_time((WINDOW_DAYS - WARNED_DAYS) * DAY)

    def let_be_destroyed(self) -> None:
        """Let all that time pass at once, as while a host is suspended: what was missed is done in order."""
        self.pair.pass_time(WINDOW_DAYS * DAY)

    def let_be_rotated(self) -> None:
        """Let the date of its rotation come."""
        self.pair.pass_time(PERIOD_DAYS * DAY)


Step = Callable[[Life], None]
# What is done before, and then what the kill falls upon.
DEEDS: dict[str, tuple[list[Step], Step]] = {
    "a rotation on demand": ([], Life.rotate),
    "a rotation by its date": ([Life.let_rotate], Life.let_be_rotated),
    "a scheduled deletion": ([], Life.schedule_deletion),
    "a cancelled deletion": ([Life.schedule_deletion], Life.cancel_deletion),
    "a warning": ([Life.schedule_deletion], Life.warn),
    "a destruction": ([Life.schedule_deletion, Life.warn], Life.destroy),
    "a destruction without a warning": ([Life.schedule_deletion], Life.let_be_destroyed),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", DEEDS)
def test_a_kill_at_any_disk_call_of_it_leaves_one_of_its_two_states(forge: Forge, name: str) -> None:
    """Never something between, also not in the trail; and then it is done once, as if nothing had happened."""
    print(f"KMSD_CAMPAIGN_SEED={SEED}")  # noqa: T201 - whoever finds something wants to find it again
    draw = random.Random(f"{SEED} {name}")
    at = draw.randint(1, STRIDE)
    while all(kill_amid(forge, name, Kill(at, act)) for act in (KILLS if IS_THOROUGH else [draw.choice(KILLS)])):
        at += STRIDE
    assert at > FEWEST_CALLS, "what was killed is not what it was meant to be"


def kill_amid(forge: Forge, name: str, kill: Kill) -> bool:
    """Kill the service at a disk call of what is done, and compare what is there; return whether it made so many."""
    before, deed = DEEDS[name]
    life = Life(forge)
    pair = life.pair
    with contextlib.closing(pair.host):
        for one in before:
            one(life)
        starts = pair.host.starts
        pair.plan([Fall(kill, SET_BACK)])
        deed(life)
        was_killed = pair.host.starts > starts
        if was_killed:
            pair.set_clock(0)
            pair.look(pair.model.ciphertexts)
        pair.finish()
    return was_killed


@pytest.mark.parametrize("act", KILLS)
def test_a_file_amid_which_it_is_killed_is_a_use_of_its_key(forge: Forge, act: Act) -> None:
    """From when the trail tells that it began: then a worker may have had its key."""
    at = 1
    while kill_amid_file(forge, Kill(at, act)):
        at += 1
    assert at > CALLS_OF_A_FILE, "what was killed is not what it was meant to be"


def kill_amid_file(forge: Forge, kill: Kill) -> bool:
    """Kill the service at a disk call of a file, and compare what is there; return whether it made so many."""
    life = Life(forge)
    pair = life.pair
    with contextlib.closing(pair.host):
        starts = pair.host.starts
        pair.plan([Fall(kill, None)])
        pair.ask(encrypt_file(life.key))
        pair.finish()
        return pair.host.starts > starts
