"""Conditions: every operator against values of a request, and what is refused before it is evaluated."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.access.condition_grammar import (
    MAX_CONDITIONS,
    MAX_PATTERNS,
    MAX_SEARCHED_CHARACTERS,
    MAX_SET_COMPARISONS,
    OPERATORS,
    ConditionReader,
)
from kmsd.access.condition_keys import CONDITION_KEYS, ValueType, condition_key
from kmsd.access.conditions import MAX_CHARACTERS, MAX_VALUES, Condition, Quantifier
from kmsd.access.document import read_document
from kmsd.access.facts import UNDETERMINED, Values
from kmsd.access.places import DOCUMENT, GrammarError
from kmsd.access.wildcards import Wildcard
from kmsd.api.errors import LimitExceededError
from tests.support.given_facts import GivenFacts

ARN = "arn:aws:iam::111122223333:user/alice"
STRING, NUMBER, DATE, BOOL = "kms:RequestAlias", "kmsd:Uid", "aws:CurrentTime", "kms:MultiRegion"
PRINCIPAL, CONTEXT = "aws:PrincipalArn", "kms:EncryptionContext:app"
MANY, NUMBERS = "kms:EncryptionContextKeys", "kmsd:Gids"


def read(block: object) -> Condition:
    """Read a member Condition as a document has it."""
    document = read_document(json.dumps({"Condition": block}))
    return ConditionReader().condition(document["Condition"], DOCUMENT.member("Condition"))


def holds(operator: str, key: str, wanted: object, values: Values) -> bool | None:
    return read({operator: {key: wanted}}).holds(GivenFacts({key.lower(): values}))


def refusal(block: object) -> str:
    with pytest.raises(GrammarError) as refused:
        read(block)
    return refused.value.problem


# operator, key, what a policy wants, the values that hold, the values that do not
SINGLE: list[tuple[str, str, object, list[str], list[str]]] = [
    ("StringEquals", STRING, "alias/a", ["alias/a"], ["alias/A", "alias/a ", "alias/"]),
    ("StringEquals", STRING, ["alias/a", "alias/b"], ["alias/a", "alias/b"], ["alias/c"]),
    ("StringEquals", STRING, "alias/*", ["alias/*"], ["alias/a"]),
    ("StringEquals", CONTEXT, "", [""], ["x"]),
    ("StringEqualsIgnoreCase", STRING, ["ALIAS/a", "b"], ["alias/A", "B"], ["alias/*", "alias/ab"]),
    ("StringLike", STRING, "alias/*", ["alias/", "alias/a/b"], ["alia/", "Alias/a"]),
    ("StringLike", STRING, ["a?c", "*end", "x*y*z"], ["abc", "end", "the end", "xyz", "x-y-yz"], ["ac", "ends", "xz"]),
    ("StringLike", STRING, "*", ["", "anything: at/all"], []),
    ("StringLike", STRING, "[a-c]", ["[a-c]"], ["a", "b"]),
    ("StringEquals", PRINCIPAL, ARN, [ARN], [f"{ARN}x"]),
    ("StringLike", PRINCIPAL, "*:user/*", [ARN], ["arn:aws:iam::111122223333:root"]),
    ("ArnEquals", PRINCIPAL, ARN, [ARN], [f"{ARN}x", "alice"]),
    ("ArnLike", PRINCIPAL, "arn:aws:iam::*:user/*", [ARN], ["arn:aws:iam::1:role/x", "arn:aws:sts::1:user/x", "*"]),
    ("ArnEquals", PRINCIPAL, "arn:*:*:*:*:user/a*e", [ARN], [f"{ARN}s"]),
    # A wildcard ends where the part does; only the last part can have colons.
    ("ArnLike", PRINCIPAL, "arn:aws:*:user/alice::", [], [ARN]),
    (
        "ArnLike",
        PRINCIPAL,
        "arn:aws:iam::*:a:*",
        ["arn:aws:iam::1:a:b:c"],
        ["arn:aws:iam:x:1:a:b", "arn:aws:iam::1:b:a:c"],
    ),
    ("Bool", BOOL, "true", ["true", "True"], ["false"]),
    ("Bool", BOOL, False, ["false"], ["true"]),
    ("Bool", BOOL, ["true", "false"], ["true", "false"], []),
    ("NumericEquals", NUMBER, ["1000", 0], ["1000", "01000", "1000.0", "0", "-0"], ["1001", "100"]),
    ("NumericEquals", NUMBER, "0.1", ["0.1", "0.10"], ["0.100000000000000001"]),
    ("NumericEquals", NUMBER, 9007199254740993, ["9007199254740993"], ["9007199254740992"]),
    ("NumericLessThan", NUMBER, ["7", "9"], ["8", "-9"], ["9", "10"]),
    ("NumericLessThanEquals", NUMBER, "9", ["9", "8.999"], ["9.001"]),
    ("NumericGreaterThan", NUMBER, ["7", "9"], ["8", "10"], ["7", "-8"]),
    ("NumericGreaterThanEquals", NUMBER, "9", ["9", "10"], ["8"]),
    (
        "DateEquals",
        DATE,
        "2026-01-31",
        ["2026-01-31T00:00:00Z", "1769817600", "2026-01-31T01:00+01:00"],
        ["1769817601"],
    ),
    ("DateLessThan", DATE, "2026-01-31T12:00:00Z", ["2026-01-31T11:59:59.999999Z"], ["2026-01-31T12:00:00Z"]),
    ("DateLessThan", DATE, "2026-01-31T12:00:00+02:00", ["2026-01-31T09:59:59Z"], ["2026-01-31T10:00:00Z"]),
    ("DateLessThanEquals", DATE, 1769817600, ["2026-01-31T00:00:00Z"], ["2026-01-31T00:00:01Z"]),
    ("DateGreaterThan", DATE, "2026-01-31", ["2026-01-31T00:00:01Z"], ["2026-01-31T00:00:00Z", "1969-12-31T00:00:00Z"]),
    ("DateGreaterThanEquals", DATE, "2026-01-31", ["2026-01-31T00:00:00Z"], ["2026-01-30T23:59:59Z"]),
    # AWS: times may be compared as seconds.
    ("NumericLessThan", DATE, "1769817600", ["2026-01-30T23:59:59Z"], ["2026-01-31T00:00:00Z"]),
]
_NEGATED = {name.replace("Not", ""): name for name, one in OPERATORS.items() if one.negated}


@pytest.mark.parametrize(("operator", "key", "wanted", "fitting", "others"), SINGLE)
def test_an_operator_compares_the_one_value_of_a_key(
    operator: str, key: str, wanted: object, fitting: list[str], others: list[str]
) -> None:
    """One of the values that the policy gives has to fit; the opposite operator holds where none does."""
    assert [holds(operator, key, wanted, [value]) for value in fitting] == [True] * len(fitting)
    assert [holds(operator, key, wanted, [value]) for value in others] == [False] * len(others)
    if (opposite := _NEGATED.get(operator)) is not None:
        assert [holds(opposite, key, wanted, [value]) for value in fitting] == [False] * len(fitting)
        assert [holds(opposite, key, wanted, [value]) for value in others] == [True] * len(others)


def test_every_operator_is_compared_here() -> None:
    """Those of the table above and their opposites are all there are."""
    compared = {operator for operator, *_ in SINGLE}

    assert compared | {_NEGATED[one] for one in compared if one in _NEGATED} == set(OPERATORS)


WANTED: dict[ValueType, Any] = {
    ValueType.STRING: "a",
    ValueType.ARN: ARN,
    ValueType.BOOL: "true",
    ValueType.NUMBER: "1",
    ValueType.DATE: "2026-01-31",
}
SINGLE_KEYS = {ValueType.STRING: STRING, ValueType.ARN: PRINCIPAL, ValueType.BOOL: BOOL, ValueType.NUMBER: NUMBER}
SINGLE_KEYS[ValueType.DATE] = DATE


def a_key_and_value(operator: str) -> tuple[str, Any]:
    family = OPERATORS[operator].family
    kind = next(kind for kind in SINGLE_KEYS if kind in family.value)
    return SINGLE_KEYS[kind], WANTED[kind]


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_key_that_is_not_there_is_not_what_is_wanted(operator: str) -> None:
    """Unless the operator says Not, or IfExists."""
    key, wanted = a_key_and_value(operator)

    assert holds(operator, key, wanted, None) is OPERATORS[operator].negated
    assert holds(operator, key, wanted, ()) is OPERATORS[operator].negated
    assert holds(f"{operator}IfExists", key, wanted, None) is True


@pytest.mark.parametrize("suffix", ["", "IfExists"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_what_cannot_be_determined_is_neither_as_wanted_nor_not(operator: str, suffix: str) -> None:
    """So that a Deny holds and an Allow does not, whatever the operator."""
    key, wanted = a_key_and_value(operator)

    assert holds(f"{operator}{suffix}", key, wanted, UNDETERMINED) is None


@pytest.mark.parametrize("operator", ["ForAllValues:StringEquals", "ForAnyValue:StringNotLike", "Null"])
def test_nor_are_values_that_cannot_be_determined(operator: str) -> None:
    """Not even whether there are any."""
    assert holds(operator, MANY, "true", UNDETERMINED) is None


@pytest.mark.parametrize(
    ("wanted", "there", "missing"),
    [("true", False, True), ("false", True, False), (True, False, True), (["true", "false"], True, True)],
)
def test_null_asks_whether_a_key_is_there(wanted: object, there: bool, missing: bool) -> None:
    """With one value or with several."""
    for key in (STRING, MANY, NUMBER):
        assert holds("Null", key, wanted, ["x"]) is there
        assert holds("Null", key, wanted, ["x", "y"]) is there
        assert holds("Null", key, wanted, None) is missing
        assert holds("Null", key, wanted, []) is missing


@pytest.mark.parametrize(
    ("operator", "key", "wanted", "values", "every", "some"),
    [
        ("StringEquals", MANY, ["a", "b"], ["a", "b"], True, True),
        ("StringEquals", MANY, ["a", "b"], ["a", "c"], False, True),
        ("StringEquals", MANY, ["a", "b"], ["c", "d"], False, False),
        ("StringEquals", MANY, ["a", "b"], None, True, False),
        ("StringEquals", MANY, ["a", "b"], [], True, False),
        ("StringNotEquals", MANY, ["a", "b"], ["c", "d"], True, True),
        ("StringNotEquals", MANY, ["a", "b"], ["a", "c"], False, True),
        ("StringNotEquals", MANY, ["a", "b"], ["a", "b"], False, False),
        ("StringNotEquals", MANY, ["a", "b"], None, True, False),
        ("StringEqualsIgnoreCase", MANY, "a", ["A", "a"], True, True),
        ("StringLike", MANY, ["a*", "*z"], ["ab", "yz"], True, True),
        ("StringLike", MANY, ["a*", "*z"], ["ab", "yx"], False, True),
        ("StringEqualsIfExists", MANY, "a", None, True, True),
        ("StringEqualsIfExists", MANY, "a", ["b"], False, False),
        ("NumericEquals", NUMBERS, ["34", "4"], ["34", "1000"], False, True),
        ("NumericLessThan", NUMBERS, "1000", ["34", "999"], True, True),
        ("NumericGreaterThanEquals", NUMBERS, "1000", ["34", "999"], False, False),
        ("NumericNotEquals", NUMBERS, "0", ["0", "1"], False, True),
    ],
)
def test_of_several_values_each_or_any_has_to_fit(
    operator: str, key: str, wanted: object, values: Values, every: bool, some: bool
) -> None:
    """ForAllValues holds where there are none, ForAnyValue does not, as in IAM."""
    assert holds(f"ForAllValues:{operator}", key, wanted, values) is every
    assert holds(f"ForAnyValue:{operator}", key, wanted, values) is some


@pytest.mark.parametrize(
    ("quantifier", "values", "expected"),
    [
        (Quantifier.EVERY, ["34", "x"], None),
        (Quantifier.EVERY, ["35", "x"], False),
        (Quantifier.ANY, ["34", "x"], True),
        (Quantifier.ANY, ["35", "x"], None),
    ],
)
def test_one_value_that_is_not_of_the_type_leaves_open_only_what_it_could_change(
    quantifier: Quantifier, values: list[str], expected: bool | None
) -> None:
    """What the others settle is settled."""
    assert holds(f"{quantifier}:NumericEquals", NUMBERS, "34", values) is expected


@pytest.mark.parametrize(
    ("operator", "key", "wanted", "value"),
    [
        ("NumericEquals", NUMBER, "1", "one"),
        ("NumericNotEquals", NUMBER, "1", ""),
        ("NumericLessThan", NUMBER, "1", "1" * 21),
        ("NumericLessThan", NUMBER, "1", "1e1"),
        ("Bool", BOOL, "true", "yes"),
        ("DateLessThan", DATE, "2026-01-31", "yesterday"),
        ("DateGreaterThan", DATE, "2026-01-31", "2026-02-30T00:00:00Z"),
    ],
)
def test_a_value_of_another_type_cannot_be_compared(operator: str, key: str, wanted: str, value: str) -> None:
    """It is neither as wanted nor not."""
    assert holds(operator, key, wanted, [value]) is None


def test_two_values_of_a_key_that_has_one_cannot_be_compared() -> None:
    """An encryption context may have names that differ in case only, and a condition's name has no case."""
    assert holds("StringEquals", CONTEXT, "a", ["a", "a"]) is None


@pytest.mark.parametrize("key", ["kms:EncryptionContext:App", "KMS:encryptioncontext:APP", "kms:EncryptionContext:app"])
def test_keys_are_named_without_regard_to_case(key: str) -> None:
    """Also the name in an encryption context; its value is compared as the operator does."""
    condition = read({"StringEquals": {key: "a"}})

    assert condition.holds(GivenFacts({"kms:encryptioncontext:app": ["a"]})) is True
    assert condition.holds(GivenFacts({"kms:encryptioncontext:app": ["A"]})) is False


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["a"], ["b"], True),
        (["a"], ["x"], False),
        (["x"], UNDETERMINED, False),
        (UNDETERMINED, ["x"], False),
        (UNDETERMINED, ["b"], None),
        (["a"], UNDETERMINED, None),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_all_keys_and_operators_have_to_fit(
    first: Values, second: Values, expected: bool | None, together: bool
) -> None:
    """One that does not settles it, whatever cannot be told of the others."""
    one, other = {CONTEXT: "a"}, {STRING: "b"}
    condition = read({"StringEquals": one | other} if together else {"StringEquals": one, "StringLike": other})

    assert condition.holds(GivenFacts({CONTEXT.lower(): first, STRING.lower(): second})) is expected


def test_the_kind_of_every_key_is_known() -> None:
    """Each can be asked for by one of its operators, and by no operator of another type."""
    for key in CONDITION_KEYS:
        name = f"{key.name}x" if key.open else key.name
        prefix = "ForAnyValue:" if key.several else ""
        for operator, one in OPERATORS.items():
            kind = ValueType.NUMBER if operator.startswith("Numeric") else key.type
            block = {f"{prefix}{operator}": {name: WANTED[ValueType.STRING if operator.startswith("String") else kind]}}
            if key.type in one.family.value:
                assert read(block).clauses[0].key == name.lower()
            else:
                assert f"has values of the type {key.type}, which this operator does not compare" in refusal(block)


def test_a_key_with_an_open_name_needs_the_name() -> None:
    """And the message says how it is written."""
    assert condition_key("kms:EncryptionContext:") is None
    assert refusal({"StringEquals": {"kms:EncryptionContext": "a"}}) == (
        "the condition key 'kms:EncryptionContext' is unknown; a name follows it, as in kms:EncryptionContext:NAME"
    )
    assert refusal({"StringEquals": {"aws:ResourceTag/": "a"}}) == (
        "the condition key 'aws:ResourceTag/' is unknown; a name follows it, as in aws:ResourceTag/NAME"
    )


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({}, "must be an object of at least one of operators"),
        ([], "must be an object of at least one of operators"),
        ("StringEquals", "must be an object of at least one of operators"),
        ({"StringEquals": {}}, "must be an object of at least one of condition keys"),
        ({"StringEquals": "a"}, "must be an object of at least one of condition keys"),
        ({"StringEqual": {STRING: "a"}}, "the operator 'StringEqual' is unknown; did you mean 'StringEquals'?"),
        ({"stringequals": {STRING: "a"}}, "the operator 'stringequals' is unknown; did you mean 'StringEquals'?"),
        (
            {"ForAllValue:StringLikeIfExist": {MANY: "a"}},
            "the operator 'ForAllValue:StringLikeIfExist' is unknown; did you mean 'ForAllValues:StringLike'?",
        ),
        ({"ForEachValue:Bool": {BOOL: "true"}}, "the operator 'ForEachValue:Bool' is unknown; did you mean"),
        ({"x" * 10_000: {STRING: "a"}}, "the operator 'xxx"),
        ({"": {STRING: "a"}}, "the operator '' is unknown"),
        ({"IfExists": {STRING: "a"}}, "the operator 'IfExists' is unknown"),
        ({"NullIfExists": {STRING: "true"}}, "Null asks whether a key is there, and goes with neither"),
        ({"ForAllValues:Null": {MANY: "true"}}, "Null asks whether a key is there, and goes with neither"),
        (
            {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}},
            "the operator 'IpAddress' has no use here: no key has addresses",
        ),
        ({"NotIpAddressIfExists": {"aws:SourceIp": "10.0.0.0/8"}}, "the operator 'NotIpAddress' has no use here"),
        ({"BinaryEquals": {STRING: "QQ=="}}, "the operator 'BinaryEquals' has no use here: no key has binary values"),
        ({"StringEquals": {"aws:SourceIp": "a"}}, "the condition key 'aws:SourceIp' is unknown"),
        (
            {"StringEquals": {"kms:KeySpecs": "a"}},
            "the condition key 'kms:KeySpecs' is unknown; did you mean 'kms:KeySpec'?",
        ),
        ({"StringEquals": {"": "a"}}, "the condition key '' is unknown"),
        ({"StringEquals": {MANY: "a"}}, f"'{MANY}' can have several values: put ForAllValues: or ForAnyValue:"),
        ({"ForAnyValue:StringEquals": {STRING: "a"}}, f"'{STRING}' has one value only: leave ForAnyValue: out"),
        ({"NumericEquals": {STRING: "1"}}, f"'{STRING}' has values of the type string, which this operator does not"),
        ({"StringEquals": {NUMBER: "1"}}, f"'{NUMBER}' has values of the type number, which this operator does not"),
        ({"StringEquals": {STRING: []}}, "must be a value or a list of at least one value"),
        ({"StringEquals": {STRING: None}}, "holds something that is not a string"),
        ({"StringEquals": {STRING: 5}}, "holds something that is not a string"),
        ({"StringEquals": {STRING: True}}, "holds something that is not a string"),
        ({"StringEquals": {STRING: ["a", ["b"]]}}, "holds something that is not a string"),
        ({"StringEquals": {STRING: {"a": "b"}}}, "holds something that is not a string"),
        ({"StringLike": {STRING: "alias/${aws:username}"}}, "policy variables are not supported"),
        ({"Bool": {BOOL: "yes"}}, '\'yes\' is neither "true" nor "false"'),
        ({"Bool": {BOOL: 1}}, 'holds something that is not one of "true" and "false"'),
        ({"Null": {STRING: ""}}, '\'\' is neither "true" nor "false"'),
        ({"NumericEquals": {NUMBER: "0x10"}}, "'0x10' is not a decimal number of at most 20 digits"),
        ({"NumericEquals": {NUMBER: True}}, "holds something that is not a number"),
        ({"NumericLessThan": {NUMBER: "1" * 21}}, f"'{'1' * 21}' is not a decimal number of at most 20 digits"),
        ({"NumericLessThan": {NUMBER: 1e300}}, "'1e+300' is not a decimal number of at most 20 digits"),
        ({"NumericLessThan": {DATE: "2026-01-31"}}, "'2026-01-31' is not a decimal number"),
        *(
            ({"DateLessThan": {DATE: text}}, f"'{text}' is neither a date as in 2026-01-31 or")
            for text in (
                "tomorrow",
                "2026-13-01",
                "2026-01-31T12:00:00",
                "2026-01-31 12:00Z",
                "31.01.2026",
                "2026-01",
                "",
            )
        ),
        *(
            ({"ArnLike": {PRINCIPAL: text}}, f"'{text}' is not an ARN of six parts")
            for text in ("*", "alice", "arn:aws:iam::*", "urn:aws:iam::1:root")
        ),
    ],
)
def test_a_condition_that_is_not_understood_is_refused(block: object, problem: str) -> None:
    """The message says what is wrong and, where it is a slip, what was meant, and stays short."""
    found = refusal(block)

    assert found.startswith(problem)
    assert len(found) < 300


def test_an_error_is_found_at_the_item_that_has_it() -> None:
    """In a list of values it is one of them."""
    with pytest.raises(GrammarError) as refused:
        read({"NumericEquals": {NUMBER: ["1", "2", "x"]}})

    assert refused.value.place.path == ("Condition", "NumericEquals", NUMBER, 2)
    assert refused.value.place.label == f"Condition, NumericEquals, {NUMBER}"


@pytest.mark.parametrize(
    ("block", "values", "reason"),
    [
        ({"StringEquals": {CONTEXT: "db"}}, ["web"], "kms:EncryptionContext:app is 'web', wanted 'db'"),
        ({"StringEquals": {CONTEXT: ["db", "x"]}}, None, "kms:EncryptionContext:app is not given, wanted 'db' or 'x'"),
        ({"StringNotLike": {CONTEXT: "w*"}}, ["web"], "kms:EncryptionContext:app is 'web', wanted not like 'w*'"),
        ({"StringEquals": {CONTEXT: "db"}}, UNDETERMINED, "kms:EncryptionContext:app cannot be determined"),
        ({"Null": {CONTEXT: "true"}}, ["web"], "kms:EncryptionContext:app is 'web', wanted none"),
        ({"Null": {CONTEXT: "false"}}, None, "kms:EncryptionContext:app is not given, wanted one"),
        (
            {"StringEquals": {CONTEXT: list("abcde")}},
            ["x"],
            "kms:EncryptionContext:app is 'x', wanted 'a' or 'b' or 'c' and 2 more",
        ),
        ({"StringEquals": {CONTEXT: "db"}}, ["db"], "its conditions are met"),
        (
            {"StringEquals": {"kms:EncryptionContext:\ud800\x9b": "\ud800"}},
            None,
            r"'kms:EncryptionContext:\ud800\x9b' is not given, wanted '\ud800'",
        ),
    ],
)
def test_a_condition_says_what_it_wanted_and_what_there_was(block: object, values: Values, reason: str) -> None:
    """For people who ask why."""
    assert read(block).reason(GivenFacts({CONTEXT.lower(): values})) == reason


def test_of_several_values_a_reason_says_which_are_wanted() -> None:
    """Each, or one."""
    facts = GivenFacts({MANY.lower(): ["a", "x"]})

    assert (
        read({"ForAllValues:StringEquals": {MANY: "a"}}).reason(facts) == f"{MANY} is 'a', 'x', wanted each to be 'a'"
    )
    assert read({"ForAnyValue:StringEquals": {MANY: "b"}}).reason(facts) == f"{MANY} is 'a', 'x', wanted one to be 'b'"


def test_only_what_is_asked_is_looked_up() -> None:
    """A fact may cost a look-up; nothing is asked beyond the first clause that does not hold."""
    asked: list[str] = []

    class Recording(GivenFacts):
        def values(self, key: str) -> Values:
            asked.append(key)
            return None

    read({"StringEquals": {STRING: "a", CONTEXT: "b"}}).holds(Recording())

    assert asked == [STRING.lower()]


@pytest.mark.parametrize(
    ("limit", "blocks", "what"),
    [
        (MAX_CONDITIONS, [{"StringEquals": {f"kms:EncryptionContext:{one}": "a"}} for one in range(999)], "conditions"),
        (MAX_SET_COMPARISONS, [{"ForAnyValue:StringEquals": {MANY: "a"}}] * 999, "conditions and patterns for several"),
        (
            MAX_SET_COMPARISONS,
            [{"ForAllValues:StringLike": {MANY: f"a{one}*"}} for one in range(999)],
            "conditions and patt",
        ),
        (MAX_PATTERNS, [{"StringLike": {STRING: [f"{one}*"]}} for one in range(999)], "patterns in conditions"),
        (
            MAX_PATTERNS,
            [{"ArnLike": {PRINCIPAL: [f"arn:aws:iam::*:user/{one}"]}} for one in range(999)],
            "patterns in cond",
        ),
        (MAX_SEARCHED_CHARACTERS / 8, [{"StringLike": {STRING: "*abcd?efg*"}}] * 999, "characters between two"),
    ],
)
def test_what_the_conditions_of_a_policy_can_cost_is_bounded(limit: float, blocks: list[Any], what: str) -> None:
    """Over all of its statements."""
    reader = ConditionReader()
    for block in blocks[: int(limit)]:
        reader.condition(block, DOCUMENT)

    with pytest.raises(LimitExceededError, match=f"A policy may have at most [0-9]+ {what}"):
        reader.condition(blocks[int(limit)], DOCUMENT)


def test_values_without_number_or_end_are_not_compared() -> None:
    """Then it cannot be told, rather than told slowly."""
    assert holds("ForAnyValue:StringEquals", MANY, "a", ["a"] * MAX_VALUES) is True
    assert holds("ForAnyValue:StringEquals", MANY, "a", ["a"] * (MAX_VALUES + 1)) is None
    assert holds("StringLike", STRING, "a*", ["a" * MAX_CHARACTERS]) is True
    assert holds("StringLike", STRING, "a*", ["a" * (MAX_CHARACTERS + 1)]) is None
    assert holds("ForAllValues:StringLike", MANY, "a*", ["a" * MAX_CHARACTERS, "a"]) is None


def test_a_decision_takes_a_bounded_number_of_steps() -> None:
    """The product of what a policy and what a request may have at most, each of which takes nanoseconds."""
    searched = MAX_SEARCHED_CHARACTERS * MAX_CHARACTERS
    compared = MAX_SET_COMPARISONS * MAX_VALUES

    assert Wildcard("a*bcd*?e?*f").searched == len("bcd?e?")
    assert searched <= 2**20
    assert compared <= 2**13
    assert MAX_CONDITIONS + MAX_PATTERNS <= 2**8


NAMES = st.sampled_from(
    [
        *OPERATORS,
        "Null",
        "NullIfExists",
        "ForAllValues:StringLike",
        "ForAnyValue:NumericLessThan",
        "IpAddress",
        ":",
        "\ud800",
    ]
)
KEYS = st.sampled_from(
    [STRING, NUMBER, DATE, BOOL, PRINCIPAL, CONTEXT, MANY, NUMBERS, "kms:EncryptionContext:\ud800", ""]
)
SCALARS = st.sampled_from(
    [
        "",
        "a*?*b",
        ARN,
        "arn:*:*:*:*:*",
        "true",
        True,
        None,
        "1",
        1,
        -0.5,
        1e99,
        "0000-01-01",
        "9999-12-31T23:59:59-23:59",
    ]
)
WHATEVER = SCALARS | st.text(max_size=5) | st.lists(SCALARS, max_size=3) | st.dictionaries(KEYS, SCALARS, max_size=1)


@given(block=st.dictionaries(NAMES, st.dictionaries(KEYS, WHATEVER, max_size=2) | SCALARS, max_size=2), value=SCALARS)
def test_no_condition_breaks_the_reader_or_what_it_becomes(block: object, value: object) -> None:
    """It is read or refused, and what was read can be asked of anything and explained."""
    try:
        condition = read(block)
    except GrammarError as error:
        assert error.problem.isprintable()  # noqa: PT017 - either is right
        return

    for values in ([str(value)], [str(value), ""], None, UNDETERMINED):
        facts = GivenFacts({clause.key: values for clause in condition.clauses})
        assert condition.holds(facts) in {True, False, None}
        assert condition.reason(facts).isprintable()
