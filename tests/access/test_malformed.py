"""Malformed policies as data: each with where the error is and how a person is told it.

In a text of `malformed/`, the sign ▶, which no policy may have, stands before what is wrong. A statement is read as the
only one of a key policy.
"""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmsd.access.condition_grammar import MAX_CONDITIONS, MAX_PATTERNS, MAX_SEARCHED_CHARACTERS, MAX_SET_COMPARISONS
from kmsd.access.document import MAX_BYTES
from kmsd.access.grammar import MAX_NAMES, MAX_WILDCARDS
from kmsd.access.policy import PolicyKind, named_in, parse_policy
from kmsd.api.errors import LimitExceededError, MalformedPolicyDocumentError
from tests.support.given_requests import GivenNames

ACCOUNT = "111122223333"
NAMES = GivenNames({"alice": 1000}, {"backup": 34})
SIGN = "▶"
AROUND = '{\n  "Version": "2012-10-17",\n  "Statement": [\n    %s\n  ]\n}'
MALFORMED = [
    pytest.param(kind, one["text"], one["message"], id=f"{path.stem}: {one['name']}")
    for path in sorted(Path(__file__).parent.glob("malformed/*.toml"))
    for kind, listed in tomllib.loads(path.read_text("utf-8")).items()
    for one in listed
]
STATEMENT = {"Effect": "Allow", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"}
# Something of everything that a policy can have, in the layout of an editor.
VALID = json.dumps(
    {
        "Version": "2012-10-17",
        "Id": "b\xfccher",
        "Statement": [
            {
                "Sid": "one \\ two",
                "Effect": "Allow",
                "Principal": {"AWS": [f"arn:aws:iam::{ACCOUNT}:root", ACCOUNT], "Unix": ["user:alice", "group:backup"]},
                "Action": ["kms:Encrypt", "kms:Get*"],
                "Resource": "*",
                "Condition": {
                    "StringLikeIfExists": {"kms:EncryptionContext:app": ["web*", "db?"]},
                    "ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b"]},
                    "NumericLessThan": {"kmsd:Uid": 2000},
                    "Null": {"kms:RequestAlias": False},
                },
            },
            {
                "Effect": "Deny",
                "NotPrincipal": {"Unix": ["exe:/usr/bin/restic", "unit:db@1.service"]},
                "NotAction": "kms:*",
                "NotResource": f"arn:aws:kms:local:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab",
                "Condition": {"DateGreaterThan": {"aws:CurrentTime": "2026-07-01T00:00:00Z"}},
            },
        ],
    },
    indent=2,
    ensure_ascii=False,
)
# What mutations put into it: pieces of JSON and of the grammar, and what neither has.
PIECES = ['"', "\\", "{", "}", "[", "]", ",", ":", "null", "true", "NaN", "-", "1e999", "9" * 50, "\\ud800", "\\u0041"]
PIECES += [
    " ",
    "\n",
    "\t",
    "\x00",
    "\x85",
    "\xa0",
    "\xff",
    "Ω",
    "\ud800",
    "*",
    "?",
    "${",
    "Not",
    "Statement",
    "IfExists",
]
PIECES += [
    '"Deny"',
    '"Effect": ',
    '"Condition": {',
    "kms:",
    "uid:",
    "exe:/",
    "arn:aws:iam::",
    "ForAnyValue:",
    "{}",
    "[[]]",
]


def read(text: str) -> None:
    parse_policy(text, account=ACCOUNT, names=NAMES)


@pytest.mark.parametrize(("kind", "text", "message"), MALFORMED)
def test_a_malformed_policy_is_refused(kind: str, text: str, message: str) -> None:
    """With line and column of what is wrong, and with words for it."""
    before, sign, after = (AROUND % text if kind == "statement" else text).partition(SIGN)
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")

    with pytest.raises(MalformedPolicyDocumentError) as refused:
        read(before + after)

    assert sign
    assert refused.value.message == f"line {line} column {column}: {message}"


def test_malformed_policies_are_many() -> None:
    """And none is tried twice."""
    assert len({param.values[1] for param in MALFORMED}) == len(MALFORMED) > 80


def bounded() -> list[tuple[str, str]]:
    """Return documents that have one too many of something, with what the message says of the bound."""

    def document(**members: object) -> str:
        return json.dumps({"Version": "2012-10-17", "Statement": STATEMENT | members})

    def conditional(operator: str, key: str, wanted: object) -> str:
        return document(Condition={operator: {key: wanted}})

    tags = [f"aws:RequestTag/{number}" for number in range(MAX_CONDITIONS + 1)]
    searched = f"*{'a' * (MAX_SEARCHED_CHARACTERS + 1)}*"
    return [
        (f"{MAX_BYTES} bytes", document() + " " * MAX_BYTES),
        (f"{MAX_BYTES} bytes", '"' + "ü" * (MAX_BYTES // 2) + '"'),
        (f"{MAX_NAMES} users and groups", document(Principal={"Unix": ["user:alice"] * (MAX_NAMES + 1)})),
        (f"{MAX_WILDCARDS} actions with wildcards", document(Action=["kms:Get*"] * (MAX_WILDCARDS + 1))),
        (f"{MAX_CONDITIONS} conditions", document(Condition={"StringEquals": dict.fromkeys(tags, "a")})),
        (
            f"{MAX_PATTERNS} patterns",
            conditional("StringLike", "kms:KeySpec", [f"{number}*" for number in range(MAX_PATTERNS + 1)]),
        ),
        (f"{MAX_SEARCHED_CHARACTERS} characters between", conditional("StringLike", "kms:KeySpec", searched)),
        (
            f"{MAX_SET_COMPARISONS} conditions and patterns",
            conditional("ForAnyValue:StringLike", "aws:TagKeys", [f"{one}*" for one in range(MAX_SET_COMPARISONS + 1)]),
        ),
    ]


@pytest.mark.parametrize(("bound", "text"), bounded())
def test_a_policy_beyond_a_bound_is_refused(bound: str, text: str) -> None:
    """With the bound, which is another error than that of a malformed one."""
    with pytest.raises(LimitExceededError) as refused:
        read(text)

    assert bound in refused.value.message


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """Return a valid policy with pieces cut out, put in, doubled or moved."""
    text = VALID
    for _ in range(draw(st.integers(1, 6))):
        start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        end = min(end, start + 80)
        piece = draw(st.one_of(st.sampled_from(PIECES), st.just(""), st.just(text[start:end] * 2), st.text(max_size=3)))
        text = text[:start] + piece + text[end if draw(st.booleans()) else start :]
    return text


class RecordingNames(GivenNames):
    """Knows every user and group, and which of them it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def uid_of(self, name: str) -> int | None:
        self.asked.add(f"user:{name}")
        return 1000

    def gid_of(self, name: str) -> int | None:
        self.asked.add(f"group:{name}")
        return 34


def check_refusal(message: str, text: str) -> None:
    """The place is one of the text, and the words can be shown on a terminal."""
    place, _, problem = message.partition(": ")
    _, line, _, column = place.split()
    lines = text.split("\n")
    assert 1 <= int(line) <= len(lines)
    assert 1 <= int(column) <= len(lines[int(line) - 1]) + 1
    assert problem
    assert message.isprintable()
    assert len(message) < 500


@settings(max_examples=500, deadline=None)
@given(mutated())
def test_whatever_is_done_to_a_policy_it_is_read_or_refused_with_a_place(text: str) -> None:
    """Nothing but the two errors of the grammar comes out; every name that is looked up was announced."""
    names = RecordingNames()
    for kind in PolicyKind:
        try:
            parse_policy(text, account=ACCOUNT, names=names, kind=kind)
        except LimitExceededError:
            pass
        except MalformedPolicyDocumentError as error:
            check_refusal(error.message, text)
    if names.asked:
        # What is not said to be named would be taken for a name that does not exist.
        assert names.asked <= named_in(text)


_MEMBERS = ("Version", "Statement", *STATEMENT, "Condition", "AWS", "Unix", "Null", "StringEquals", "kms:KeySpec")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_MEMBERS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(JSON_VALUES)
def test_whatever_stands_in_a_members_place_it_is_read_or_refused_with_a_place(value: object) -> None:
    """In the place of each member of the document and of a statement."""
    for name in ("Version", "Id", "Statement", *STATEMENT, "Sid", "Condition"):
        whole = {"Version": "2012-10-17", "Statement": STATEMENT}
        inner = STATEMENT | {name: value} if name in {*STATEMENT, "Sid", "Condition"} else None
        text = json.dumps(whole | ({name: value} if inner is None else {"Statement": inner}), indent=1)
        try:
            read(text)
        except MalformedPolicyDocumentError as error:
            check_refusal(error.message, text)
