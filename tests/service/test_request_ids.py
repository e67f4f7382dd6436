"""The ids of requests: unique, and told apart by their first eight digits."""

from __future__ import annotations

import itertools
import os
import re

from kmsd.service.request_ids import RequestIds


def test_ids_are_32_hexadecimal_digits_and_none_comes_twice() -> None:
    """Within a run, and in another run."""
    ids = RequestIds(os.urandom)
    others = RequestIds(os.urandom)
    made = [*(ids.next() for _ in range(1000)), *(others.next() for _ in range(1000))]

    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in made)
    assert len(set(made)) == len(made)


def test_the_first_eight_digits_differ_within_a_run() -> None:
    """Also of requests that follow each other, in all but a few places: nobody takes one for the other."""
    ids = RequestIds(bytes)
    prefixes = [ids.next()[:8] for _ in range(20_000)]

    assert len(set(prefixes)) == len(prefixes)
    for before, after in itertools.pairwise(prefixes):
        assert sum(one != other for one, other in zip(before, after, strict=True)) >= 4


def test_ids_differ_also_when_the_first_digits_come_round() -> None:
    """After 2**32 requests, which a busy daemon has in days."""
    ids = RequestIds(bytes)
    first = ids.next()
    # Where the sequence ends: one step before its beginning.
    ids._last = (1 << 32) - 0x9E3779B1

    assert ids.next()[:8] == "00000000"
    again = ids.next()
    assert again[:8] == first[:8]
    assert again != first
