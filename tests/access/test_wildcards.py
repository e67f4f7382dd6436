"""Wildcards against a reference that tries everything."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access.wildcards import Wildcard, has_wildcard


def reference(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(reference(pattern[1:], text[taken:]) for taken in range(len(text) + 1))
    return bool(text) and pattern[0] in {"?", text[0]} and reference(pattern[1:], text[1:])


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("", "", True),
        ("", "a", False),
        ("*", "", True),
        ("*", "anything: at all/*", True),
        ("?", "", False),
        ("?", "*", True),
        ("kms:Generate*", "kms:GenerateDataKey", True),
        ("kms:Generate*", "kms:Generate", True),
        ("kms:Generate*", "kms:Encrypt", False),
        ("kms:*Key", "kms:DescribeKeyKey", True),
        ("arn:aws:kms:*:*:alias/*", "arn:aws:kms:local:111122223333:alias/a/b", True),
        ("arn:aws:kms:*:*:alias/*", "arn:aws:kms:local:111122223333:key/x", False),
        ("arn:aws:kms:*:*:alias/*", "*", False),
        ("a.c", "abc", False),
        ("[a]", "a", False),
    ],
)
def test_patterns_match_the_whole_text(pattern: str, text: str, expected: bool) -> None:
    """Only `*` and `?` are special."""
    assert Wildcard(pattern).matches(text) is expected


@given(st.text(alphabet="ab*?", max_size=7), st.text(alphabet="ab*", max_size=8))
def test_matching_agrees_with_trying_everything(pattern: str, text: str) -> None:
    """Taking the first place where a part is found loses no match."""
    assert Wildcard(pattern).matches(text) is reference(pattern, text)


@given(st.text())
def test_a_pattern_without_wildcards_matches_only_itself(text: str) -> None:
    """Which is why such patterns may be looked up instead."""
    if not has_wildcard(text):
        assert Wildcard(text).matches(text)
        assert not Wildcard(text).matches(text + "x")


@pytest.mark.parametrize("pattern", ["*a" * 16_000 + "b", "*" + "?" * 16_000 + "b", "*" * 32_000 + "b", "?*" * 16_000])
def test_catastrophic_patterns_take_bounded_time(pattern: str) -> None:
    """What makes a backtracking matcher run for ever takes milliseconds."""
    began = time.process_time()

    assert not Wildcard(pattern).matches("a" * 200)
    assert time.process_time() - began < 0.5
