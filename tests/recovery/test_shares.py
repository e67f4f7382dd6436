"""Shares: enough of one set make the key, and everything else is told apart in words."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from shamir_mnemonic import Share, generate_mnemonics
from shamir_mnemonic.wordlist import WORDLIST

from kmsd.memory.page import PAGE_BYTES
from kmsd.recovery.shares import (
    MAX_SHARES,
    MAX_THRESHOLD,
    SHARE_WORDS,
    SharesError,
    ShareSet,
    read_shares,
    share_in_file,
    split,
)

KEY = bytes(range(32))
SHARES = split(KEY, threshold=3, count=5)


def combined(*shares: str) -> bytes:
    return read_shares("\n".join(shares)).combine()


@settings(max_examples=20)
@given(st.data())
def test_any_m_of_n_shares_make_the_key(data: st.DataObject) -> None:
    """Whichever are taken, in whatever order, and one less never does."""
    threshold = data.draw(st.integers(2, MAX_THRESHOLD))
    count = data.draw(st.integers(threshold, MAX_SHARES))
    key = data.draw(st.binary(min_size=32, max_size=32))
    shares = split(key, threshold=threshold, count=count)
    chosen = data.draw(st.permutations(shares))[:threshold]

    assert combined(*chosen) == key
    with pytest.raises(SharesError, match=rf"{threshold} shares are needed, and there are {threshold - 1}: bring 1"):
        combined(*chosen[1:])


def test_more_shares_than_needed_do_no_harm() -> None:
    assert combined(*SHARES) == KEY


def test_capital_letters_and_blanks_do_not_matter() -> None:
    """Shares are typed by people."""
    sloppy = ["  " + share.title().replace(" ", " \t ") + "  " for share in SHARES[:3]]

    assert combined(*sloppy, "", "   ") == KEY


def test_as_many_shares_as_may_be_needed_fit_one_page() -> None:
    """The longest words there are, in as many shares as any threshold asks for."""
    longest = max(len(word) for word in WORDLIST)

    assert MAX_THRESHOLD * SHARE_WORDS * (longest + 1) + 2 <= PAGE_BYTES


def test_a_set_tells_how_many_shares_are_missing() -> None:
    """Before the first share nobody knows more than that there has to be one."""
    shares = ShareSet()
    missing = [shares.missing]
    for share in SHARES[:4]:
        shares.add(share)
        missing.append(shares.missing)

    assert missing == [1, 2, 1, 0, 0]
    assert shares.needed.splitlines() == SHARES[:3]


def test_a_share_that_is_refused_changes_nothing() -> None:
    """Whoever mistyped one types it again."""
    shares = ShareSet()
    shares.add(SHARES[0])
    with pytest.raises(SharesError):
        shares.add(SHARES[1].replace(" ", " x", 1))
    shares.add(SHARES[1])
    shares.add(SHARES[2])

    assert shares.combine() == KEY


def test_a_file_of_a_share_may_explain_itself() -> None:
    """Lines of comment are no words, and words may stand in several lines."""
    words = SHARES[0].split()
    content = f"# Share 1 of 5.\n\n  # Keep it.\n{' '.join(words[:9])}\n{' '.join(words[9:])}\n"

    assert share_in_file(content).split() == words


def mistyped(share: str, place: int, word: str) -> str:
    words = share.split()
    words[place - 1] = word
    return " ".join(words)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((), "there is no share"),
        ((SHARES[0], mistyped(SHARES[1], 14, "kmsd")), "share 2: word 14 is in no share's list"),
        ((mistyped(SHARES[0], 20, "zero" if SHARES[0].split()[19] != "zero" else "year"),), "share 1: its checksum"),
        ((" ".join(reversed(SHARES[0].split())),), "share 1: its checksum"),
        ((SHARES[0].rpartition(" ")[0],), "share 1 has 32 words; a share has 33"),
        ((f"{SHARES[0]} academic",), "share 1 has more words"),
        ((f"{SHARES[0]} {SHARES[1]}",), "share 1 has more words"),
        (("academic " * 1_000_000,), "share 1 has more words"),
        (("a" * 1_000_000,), "share 1 has 1 words"),
        (("\x00\x1b[2J é 密",), "share 1 has 3 words"),
        ((SHARES[0], SHARES[1], SHARES[0].upper()), "share 3 is the same as share 1"),
        ((SHARES[0], split(KEY, threshold=3, count=5)[1]), "share 2 is of another set than share 1"),
        ((SHARES[0], split(KEY, threshold=2, count=5)[1]), "share 2 is of another set than share 1"),
    ],
    ids=[
        *("none", "unknown word", "wrong word", "backwards", "short", "long", "two in a line", "huge", "one huge word"),
        *("garbage", "twice", "another set", "another threshold"),
    ],
)
def test_what_is_wrong_with_shares_is_said(shares: tuple[str, ...], words: str) -> None:
    """Which share and what about it; never a word of one."""
    with pytest.raises(SharesError) as refused:
        combined(*shares)

    assert words in str(refused.value)
    assert not {*str(refused.value).split()} & {*WORDLIST} - {"together"}


@pytest.mark.parametrize(
    "changes",
    [
        {"iteration_exponent": 15},
        {"iteration_exponent": 0},
        {"extendable": False},
        {"member_threshold": 1},
        {"member_threshold": 9},
        {"group_count": 2},
    ],
    ids=["slow", "quick", "not extendable", "one of one", "threshold", "groups"],
)
def test_shares_of_something_else_are_refused(changes: dict[str, int]) -> None:
    """A wallet's for example; and none keeps a process busy for hours."""
    other = replace(Share.from_mnemonic(SHARES[0]), **changes).mnemonic()

    with pytest.raises(SharesError, match="a share of something else than kmsd's recovery key"):
        read_shares(other)


def test_a_shorter_secret_is_something_else() -> None:
    [first, *_] = generate_mnemonics(1, [(2, 3)], KEY[:16])[0]

    with pytest.raises(SharesError, match="has 20 words"):
        read_shares(first)


@pytest.mark.parametrize(("threshold", "count"), [(1, 3), (0, 3), (9, 16), (3, 2), (2, 17), (2, 1), (-1, -1)])
def test_other_numbers_of_shares_are_refused(threshold: int, count: int) -> None:
    """One share alone would be the key, and nobody can bring more than there are."""
    with pytest.raises(ValueError, match="shares"):
        split(KEY, threshold=threshold, count=count)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_has_one_size(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        split(os.urandom(size), threshold=2, count=3)


def test_sets_that_look_alike_do_not_make_a_key() -> None:
    """One set in 32,768 has the same identifier as another: the shares then look as if they went together."""
    alike = [_with_identifier_of(split(os.urandom(32), threshold=2, count=2), SHARES[0]) for _ in range(2)]

    with pytest.raises(SharesError, match="do not fit together"):
        combined(alike[0][0], alike[1][1])


def _with_identifier_of(shares: list[str], other: str) -> list[str]:
    identifier = Share.from_mnemonic(other).identifier
    return [replace(Share.from_mnemonic(share), identifier=identifier).mnemonic() for share in shares]


def test_garbage_never_does_anything_else() -> None:
    """Random lines of the right words are refused as shares, whatever they are."""
    chosen = random.Random(5)
    for _ in range(200):
        with pytest.raises(SharesError):
            read_shares(" ".join(chosen.choices(WORDLIST, k=chosen.choice((20, 32, 33, 34))))).combine()
