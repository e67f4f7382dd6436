"""A refusal as `kms` says it: `kmsd_client.cli.refusals`."""

import pytest

from kmsd.api.errors import AccessDeniedError
from kmsd_client.cli.refusals import refusal_of

ID = "7f3a91c2" + "0" * 24
KEY = "arn:aws:kms:local-host-1:123456789012:key/00000000-0000-0000-0000-000000000001"
ALIAS = "arn:aws:kms:local-host-1:123456789012:alias/db"


def said(who: str, action: str, resource: str) -> AccessDeniedError:
    message = f"User: {who} is not authorized to perform: {action} on resource: {resource} because no policy allows it"
    return AccessDeniedError(message, request_id=ID)


@pytest.mark.parametrize(
    ("resource", "named", "shown"),
    [
        (KEY, "alias/db", "alias/db"),
        (KEY, KEY, KEY),
        (KEY, KEY.rpartition("/")[2], KEY.rpartition("/")[2]),
        (KEY, None, KEY),
        (KEY, "00000000-0000-0000-0000-000000000002", KEY),
        (ALIAS, "00000000-0000-0000-0000-000000000001", "alias/db"),
    ],
    ids=["alias", "arn", "id", "unnamed", "the other of two keys", "the alias itself"],
)
def test_a_refusal_names_the_key_as_its_user_did(resource: str, named: str | None, shown: str) -> None:
    """If the refusal is about that key."""
    sentence, hint = refusal_of(said("backup (uid 34)", "kms:Decrypt", resource), named)

    assert sentence == f"uid 34 may not kms:Decrypt {shown}"
    assert hint == "kms why 7f3a91c2, or ask an administrator to run it"


def test_what_is_about_no_key_names_none() -> None:
    """And a caller without a name is told by number all the same."""
    assert refusal_of(said("uid 1000", "kms:CreateKey", "*"), "alias/db").sentence == "uid 1000 may not kms:CreateKey"


def test_a_refusal_by_something_else_keeps_its_words() -> None:
    """The listener's, for example, which no policy decided and `kms why` could not explain."""
    refusal = refusal_of(AccessDeniedError("this daemon serves its own user only.", request_id=ID), None)

    assert refusal == ("this daemon serves its own user only", None)
