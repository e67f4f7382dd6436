"""Documents before their grammar: bounds, JSON, positions."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access.document import MAX_BYTES, MAX_DEPTH, read_document
from kmsd.api.errors import LimitExceededError, MalformedPolicyDocumentError

# Far above what any document takes here, and far below what quadratic time would.
SLOW_SECONDS = 0.5


def refusal(text: str) -> str:
    with pytest.raises(MalformedPolicyDocumentError) as refused:
        read_document(text)
    return refused.value.message


def test_an_object_is_read() -> None:
    """Members come out as JSON has them."""
    assert read_document('{"a": ["b", {"c": true}], "d": null}') == {"a": ["b", {"c": True}], "d": None}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": 1,}', "line 1 column 9: "),
        ('{\n  "a" 1\n}', "line 2 column 7: "),
        ('{"a": "b', "line 1 column 7: "),
        ('\r\n\r\n{"a": tru}', "line 3 column 7: "),
        ('{"a": "\t"}', "line 1 column 8: "),
        ('{"a": 1} {', "line 1 column 10: "),
        ("[]", "line 1 column 1: "),
        ('"text"', "line 1 column 1: "),
        ("", "line 1 column 1: "),
    ],
)
def test_what_is_no_json_object_is_refused_with_line_and_column(text: str, where: str) -> None:
    """The position is the one an editor shows."""
    assert refusal(text).startswith(where)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_are_not_json_are_refused(constant: str) -> None:
    """Python would read them; a string that holds one is fine."""
    text = f'{{"{constant}":\n  {constant}}}'

    assert refusal(text) == f"line 2 column 3: {constant} is not JSON"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"Effect": "Allow",\n "Effect": "Deny"}', "line 2 column 2"),
        ('{"a": [{"b": 1, "c": {"b": 1}}, {"b": "b", "b": 3}]}', "line 1 column 44"),
        ('{"a": 1, "\\u0061": 2}', "line 1 column 10"),
        ('{"\\"": {"\\"": 1}, "\\""  \n : 2}', "line 1 column 19"),
    ],
    ids=["plain", "nested", "escaped", "quotes"],
)
def test_a_member_that_appears_twice_is_refused_where_it_does(text: str, where: str) -> None:
    """Which of two a parser takes is its own choice, so neither is taken; names are compared as they read."""
    message = refusal(text)

    assert message.startswith(f"{where}: ")
    assert message.endswith("appears twice in one object")


def test_the_same_member_in_different_objects_is_fine() -> None:
    """Only within one object is it a repetition."""
    assert read_document('{"a": {"a": 1}, "b": {"a": "a"}}')


def test_a_document_of_the_most_bytes_is_read() -> None:
    """Exactly AWS's quota is allowed, one byte more is not."""
    text = '{"a": "' + "x" * (MAX_BYTES - 9) + '"}'

    assert len(text) == MAX_BYTES
    assert read_document(text)
    with pytest.raises(LimitExceededError, match="32768"):
        read_document(text + " ")


def test_bytes_are_counted_not_characters() -> None:
    """A character above U+007F takes two."""
    with pytest.raises(LimitExceededError):
        read_document('{"a": "' + "\xe9" * (MAX_BYTES // 2) + '"}')


@pytest.mark.parametrize(
    ("character", "name"),
    [("\x00", "U+0000"), ("\x0b", "U+000B"), ("Ā", "U+0100"), ("\ud800", "U+D800"), ("\U0001f511", "U+1F511")],
)
def test_characters_that_aws_refuses_are_refused(character: str, name: str) -> None:
    """AWS's model has tab, line ends and U+0020 to U+00FF."""
    assert refusal(f'{{\n"{character}": 1}}') == f"line 2 column 2: the character {name} is not allowed"


def test_nesting_is_bounded() -> None:
    """The deepest place of a policy is allowed, anything below is refused."""
    inner = MAX_DEPTH - 1

    assert read_document('{"a": ' + "[" * inner + "]" * inner + "}")
    assert refusal('{"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}") == "line 1 column 12: nested more than 6 deep"


@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_BYTES,
        '{"a":' * (MAX_BYTES // 5),
        '"' + '\\"' * (MAX_BYTES // 2 - 1),
        '"' * MAX_BYTES,
        "\\" * MAX_BYTES,
        '{"a":' + "1" * (MAX_BYTES - 6) + "}",
        '{"a":-0.' + "1" * (MAX_BYTES - 20) + "e99999}",
        "{" + ",".join(['"a":1'] * 5000) + "}",
        "[1" + ",1" * 16000,
        " " * MAX_BYTES,
        "x" * 10_000_000,
    ],
    ids=lambda text: f"{text[:8]}...",
)
def test_hostile_documents_are_answered_quickly(text: str) -> None:
    """Nesting, strings without end, long numbers and repetition take time in proportion to their length."""
    began = time.process_time()
    try:
        read_document(text)
    except (MalformedPolicyDocumentError, LimitExceededError) as error:
        assert len(error.message) < 300  # noqa: PT017 - either error is right, and so is none

    assert time.process_time() - began < SLOW_SECONDS


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4))
def test_what_is_written_as_json_is_read_back_unless_too_deep(value: dict[str, object]) -> None:
    """The checks around the parser change nothing about what it reads."""
    text = json.dumps(value)
    try:
        read = read_document(text)
    except MalformedPolicyDocumentError as error:
        assert "nested more than" in error.message  # noqa: PT017 - both outcomes are right
    else:
        assert read == value


@given(st.text(alphabet='{}[]",:\\ \nab1NaInfity-eutrl', max_size=40))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Whatever comes is an object or one of the two errors, and JSON that Python refuses is refused."""
    try:
        read_document(text)
    except (MalformedPolicyDocumentError, LimitExceededError):
        return

    assert isinstance(json.loads(text), dict)
