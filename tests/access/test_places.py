"""Places: line and column of what is wrong, wherever in a document it stands."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access.document import MAX_BYTES
from kmsd.access.places import DOCUMENT, Place, line_and_column, locate
from kmsd.access.policy import parse_policy
from kmsd.api.errors import MalformedPolicyDocumentError
from kmsd.identity.principals import Names

ACCOUNT = "111122223333"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(alphabet='a"\\{}[],: é', max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a",:\\', max_size=2), inner, max_size=3)
    ),
    max_leaves=10,
)


def places(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """Every place of a document, with what stands there; names stand for themselves."""
    yield place, value
    if isinstance(value, dict):
        for name, member in value.items():
            yield place.name(name), name
            yield from places(member, place.member(name))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, place.item(index))


@given(value=VALUES, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_every_value_and_name_is_found_where_it_begins(value: Any, indent: int | None, ascii_only: bool) -> None:
    """Whatever the names and strings around it hold, and however the document is written."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    for place, expected in places(value, DOCUMENT):
        found, _ = json.JSONDecoder().raw_decode(text, locate(text, place))
        assert found == expected


def test_lines_and_columns_are_counted_from_one() -> None:
    """As editors do."""
    assert line_and_column("a\n\r\nbc", 0) == "line 1 column 1"
    assert line_and_column("a\n\r\nbc", 5) == "line 3 column 2"


DOCUMENT_TEXT = """{
  "Version": "2012-10-17",
  "Statement": [
    {"Effect": "Allow", "Principal": "*", "Action": "kms:Encrypt", "Resource": "*"},
    {
      "Effect": "Deny",
      "Principal": {"Unix": ["uid:5", "user:alice"]},
      "Action": ["kms:Encrypt", "kms:Decrypt"],
      "Resource": "*",
      "Condition": {
        "StringEquals": {"kms:EncryptionContext:app": "db"},
        "NumericLessThan": {"kmsd:Uid": ["1000", 1001]}
      }
    }
  ]
}"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"2012-10-17"', '"2008-10-17"', "line 2 column 14: Version: only"),
        ('"Version": "2012-10-17",', "", "line 1 column 1: Version: only"),
        ('"Effect": "Deny"', '"Effect": "deny"', 'line 6 column 17: statement 2, Effect: must be "Allow"'),
        ('"Effect": "Deny",', "", "line 5 column 5: statement 2: Effect is missing"),
        ('"Effect": "Deny"', '"Efect": "Deny"', "line 6 column 7: statement 2: the member 'Efect' is unknown"),
        ('"user:alice"', '"user:eve"', "line 7 column 39: statement 2, Principal, Unix: 'user:eve' does not exist"),
        ('{"Unix":', '{"Service":', "line 7 column 21: statement 2, Principal: principals of the type 'Service'"),
        ('"kms:Decrypt"', '"Decrypt"', "line 8 column 33: statement 2, Action: 'Decrypt' is neither"),
        ('"kms:Decrypt"', "5", "line 8 column 33: statement 2, Action: holds something that is not a string"),
        ('"Resource": "*",\n', '"Resource": "key",\n', "line 9 column 19: statement 2, Resource: 'key' is neither"),
        (
            '"StringEquals"',
            '"StringEqual"',
            "line 11 column 9: statement 2, Condition: the operator 'StringEqual' is unknown; did you mean",
        ),
        (
            '"kmsd:Uid"',
            '"kmsd:UID:"',
            "line 12 column 29: statement 2, Condition, NumericLessThan: the condition key 'kmsd:UID:' is unknown; did",
        ),
        (
            "1001",
            '"alice"',
            "line 12 column 50: statement 2, Condition, NumericLessThan, kmsd:Uid: 'alice' is not a decimal number",
        ),
        ("1001", "10x", "line 12 column 52: "),
    ],
)
def test_every_refusal_tells_line_and_column(names: Names, old: str, new: str, message: str) -> None:
    """Of the value that is wrong, or of the name, or of the object that lacks something."""
    assert DOCUMENT_TEXT.count(old) == 1
    parse_policy(DOCUMENT_TEXT, account=ACCOUNT, names=names)

    with pytest.raises(MalformedPolicyDocumentError) as refused:
        parse_policy(DOCUMENT_TEXT.replace(old, new), account=ACCOUNT, names=names)
    assert refused.value.message.startswith(message)


def test_a_statement_without_a_list_is_the_first(names: Names) -> None:
    """AWS's grammar lets it stand alone."""
    with pytest.raises(MalformedPolicyDocumentError, match="line 1 column 55: statement 1, Effect: must be"):
        parse_policy('{"Version": "2012-10-17", "Statement":     {"Effect": 5}}', account=ACCOUNT, names=names)


@pytest.mark.parametrize(
    ("action", "more"),
    [("kms:" + "x" * 30_000, ""), ('kms:Encrypt", "' * 2000 + "x", ""), ("x", '"' + "y" * 30_000 + '": 1, ')],
)
def test_looking_for_the_place_takes_linear_time(names: Names, action: str, more: str) -> None:
    """Of a document as long as one can be."""
    text = (
        f'{{"Version": "2012-10-17", "Statement": [{{{more}"Effect": "Allow", "Principal": "*", '
        f'"Action": ["{action}"], "Resource": "*"}}]}}'
    )
    assert len(text) <= MAX_BYTES
    began = time.process_time()

    with pytest.raises(MalformedPolicyDocumentError):
        parse_policy(text, account=ACCOUNT, names=names)
    assert time.process_time() - began < 0.5
