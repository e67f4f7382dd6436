"""What one uid may use: over time, and at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kmsd.api.errors import LimitExceededError
from kmsd.config import Limits
from kmsd.server.limits import Share, Shares
from kmsd.service.token_bucket import TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_full_bucket_lets_a_second_s_worth_through_at_once() -> None:
    """Beyond that the payer waits as long as its debt takes to be paid."""
    clock = Clock()
    bucket = TokenBucket(100, 100, clock)

    assert bucket.charge(100) == 0.0
    assert bucket.charge(50) == pytest.approx(0.5)
    clock.now += 0.5
    assert bucket.charge(0) == 0.0
    clock.now += 3600
    assert bucket.charge(100) == 0.0
    assert bucket.charge(1) > 0.0


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 50)), max_size=40), st.floats(1, 100))
def test_who_waits_as_told_never_exceeds_the_rate(steps: list[tuple[float, float]], rate: float) -> None:
    """Over any time, at most one second's worth more than the rate, and the last charge, is let through."""
    clock = Clock()
    bucket = TokenBucket(rate, rate, clock)
    start, spent = clock.now, 0.0
    for pause, amount in steps:
        clock.now += pause
        spent += amount
        wait = bucket.charge(amount)
        assert spent <= rate * (clock.now + wait - start + 1) + 1e-6
        clock.now += wait


class Balance(RuleBasedStateMachine):
    """Connections come and go; the counts are what a list of them says."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = Shares(Limits(connections=6, connections_per_uid=3), Clock())
        self.open: list[tuple[int, Share]] = []

    @rule(uid=st.integers(0, 4), known=st.booleans())
    def connect(self, uid: int, known: bool) -> None:
        place = uid if known else -1
        mine = sum(one == place for one, _ in self.open)
        full = len(self.open) == 6 or mine == 3
        try:
            share = self.shares.join(uid, known=known)
        except LimitExceededError:
            assert full
            return
        assert not full
        self.open.append((place, share))

    @rule(number=st.integers(0, 5))
    def disconnect(self, number: int) -> None:
        if number < len(self.open):
            self.shares.leave(self.open.pop(number)[1])

    @invariant()
    def counts_are_right(self) -> None:
        assert self.shares.connections == len(self.open)
        for place, share in self.open:
            assert share.connections == sum(one == place for one, _ in self.open)
            assert all(other is share for one, other in self.open if one == place)


TestBalance = Balance.TestCase


def test_connecting_again_does_not_refill_the_bucket() -> None:
    """A uid's share outlives its connections."""
    shares = Shares(Limits(requests_per_second_per_uid=10), Clock())
    share = shares.join(1, known=True)
    share.bucket.charge(100)
    shares.leave(share)

    assert shares.join(1, known=True).bucket.charge(0) > 0


def test_uids_that_nobody_knows_have_one_share() -> None:
    """Who can make uids at will gets no fresh allowance with each."""
    shares = Shares(Limits(), Clock())

    assert shares.join(100_000, known=False) is shares.join(100_001, known=False)
    assert shares.join(1000, known=True) is not shares.join(1001, known=True)
