"""Names and callers for tests about policies."""

from collections.abc import Callable

import pytest

from kmsd.identity.principals import Caller, Names
from tests.support.given_requests import GivenNames


@pytest.fixture(scope="session")
def names() -> Names:
    """The names of a small host."""
    return GivenNames({"root": 0, "alice": 1000, "bob": 1001}, {"backup": 34, "kms-users": 500, "kms-auditors": 501})


@pytest.fixture(scope="session")
def given_names() -> Callable[[dict[str, int], dict[str, int]], Names]:
    """Makes names from a table of users and one of groups; what is done to the tables later counts."""
    return GivenNames


@pytest.fixture(scope="session")
def alice() -> Caller:
    return Caller(
        uid=1000,
        gid=1000,
        groups=frozenset({1000}),
        pid=1,
        user="alice",
        unit=None,
        exe=None,
        administrator=False,
    )
