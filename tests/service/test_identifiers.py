"""Names of keys: what is read as one, and what is refused in which words."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import InvalidAliasNameError, InvalidArnError, KmsError, NotFoundError
from kmsd.service.identifiers import AliasName, Arns, KeyName, check_alias

ARNS = Arns("123456789012", "local-host-1")
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
PREFIX = "arn:aws:kms:local-host-1:123456789012:"
ALIASES = st.text("abcXYZ019/_-", min_size=1, max_size=30).map("alias/".__add__)


@given(key_id=st.uuids().map(str))
def test_a_key_s_id_and_arn_name_it(key_id: str) -> None:
    """Both are read back as the id that the ARN was made of."""
    assert ARNS.key(key_id) == f"{PREFIX}key/{key_id}"
    assert ARNS.parse(key_id) == ARNS.parse(ARNS.key(key_id)) == KeyName(key_id)
    assert ARNS.parse_key(ARNS.key(key_id)) == KeyName(key_id)


@given(name=ALIASES)
def test_an_alias_and_its_arn_name_it(name: str) -> None:
    """Where aliases are accepted; elsewhere they are no key ids."""
    assert ARNS.parse(name) == ARNS.parse(ARNS.alias(name)) == AliasName(name)
    for form in (name, ARNS.alias(name)):
        with pytest.raises(NotFoundError, match="Invalid keyId"):
            ARNS.parse_key(form)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        KEY_ID.upper(),
        KEY_ID[:-1],
        KEY_ID + "\n",
        " " + KEY_ID,
        f"key/{KEY_ID}",
        "Alias/a",
        "\uff11" + KEY_ID[1:],
    ],
)
def test_what_no_key_can_have_as_id_is_not_found(name: str) -> None:
    """As with AWS: a name that is no ARN is a key id that does not exist."""
    with pytest.raises(NotFoundError, match="Invalid keyId"):
        ARNS.parse(name)


@pytest.mark.parametrize(
    "arn",
    [
        "arn:",
        "arn:aws:kms",
        f"arn:aws:s3:local-host-1:123456789012:key/{KEY_ID}",
        f"arn:aws-cn:kms:local-host-1:123456789012:key/{KEY_ID}",
        f"{PREFIX}grant/{KEY_ID}",
        f"{PREFIX}{KEY_ID}",
        f"{PREFIX}",
    ],
)
def test_a_malformed_arn_is_said_to_be_one(arn: str) -> None:
    """Another kind of resource, service or partition, or too few parts."""
    with pytest.raises(InvalidArnError):
        ARNS.parse(arn)


@pytest.mark.parametrize("place", ["local-host-1:999999999999", "eu-west-1:123456789012", ":"])
def test_keys_of_other_accounts_and_regions_are_not_here(place: str) -> None:
    """Keys stay where they were made."""
    with pytest.raises(NotFoundError, match="is not here"):
        ARNS.parse(f"arn:aws:kms:{place}:key/{KEY_ID}")


@given(text=st.text(max_size=60) | st.text(":/abk-019", max_size=60).map("arn:aws:kms:".__add__))
def test_any_text_is_a_name_or_an_error_of_the_caller_s(text: str) -> None:
    """Nothing else is raised, and what is read leads back to a name of this service."""
    try:
        name = ARNS.parse(text)
    except KmsError:
        return
    assert isinstance(name, AliasName) or str(uuid.UUID(name.key_id)) == name.key_id


@given(name=ALIASES)
def test_letters_digits_and_a_few_signs_make_an_alias(name: str) -> None:
    """As with AWS."""
    if not name.startswith(("alias/aws/", "alias/kmsd/")):
        check_alias(name)


@pytest.mark.parametrize(
    "name", ["alias/", "a", "alias/a b", "alias/a:b", "alias/ä", "alias/a\n", "ALIAS/a", "alias/aws/s3", "alias/kmsd/x"]
)
def test_other_alias_names_are_refused(name: str) -> None:
    """Wrong signs, and names that are the service's own."""
    with pytest.raises(InvalidAliasNameError):
        check_alias(name)
