"""Every error that crosses the socket: codes, statuses and whose fault it is, against AWS KMS's service model."""

from __future__ import annotations

import pytest

from kmsd.api.errors import (
    ERRORS,
    CallerError,
    DaemonError,
    InvalidCiphertextError,
    KmsError,
    KMSInternalError,
    error_from_wire,
)

# AWS KMS's service model: its exceptions with HTTP status 400, and those with 500.
CALLERS = (
    "AlreadyExists Conflict Disabled DryRunOperation IncorrectKey InvalidAliasName InvalidArn InvalidCiphertext "
    "InvalidGrantId InvalidGrantToken InvalidKeyUsage InvalidMarker KMSInvalidState LimitExceeded "
    "MalformedPolicyDocument NotFound Tag UnsupportedOperation"
)
DAEMONS = "DependencyTimeout KMSInternal KeyUnavailable"
# AWS's common errors.
COMMON = "AccessDenied Validation UnknownOperation Throttling"
OURS = (
    "Protocol MessageFormat FileAccess Sealed Storage AuditUnavailable Integrity ShuttingDown ConnectionLost "
    "UntrustedServer Token TokenUnsuitable TokenPinIncorrect TokenPinBlocked TokenPinUnavailable "
    "RecoveryShares RecoveryUnavailable"
)
RETRYABLE = (
    "Throttling Conflict KMSInternal DependencyTimeout KeyUnavailable Sealed Storage AuditUnavailable ShuttingDown "
    "Token"
)


def codes(names: str) -> set[str]:
    return {f"{name}Exception" for name in names.split()}


def test_codes_are_aws_s_or_ours() -> None:
    """And each belongs to one class."""
    assert set(ERRORS) == codes(CALLERS) | codes(DAEMONS) | codes(COMMON) | codes(OURS)
    assert all(error.code == code for code, error in ERRORS.items())
    assert len({error.code for error in ERRORS.values()}) == len(ERRORS)


@pytest.mark.parametrize("error", ERRORS.values(), ids=list(ERRORS))
def test_whose_fault_it_is_is_part_of_the_type(error: type[KmsError]) -> None:
    """The caller's have status 400, the daemon's 500 or 503; AWS's are on AWS's side."""
    caller = issubclass(error, CallerError)
    assert caller is not issubclass(error, DaemonError)
    assert error.http_status in ({400} if caller else {500, 503})
    if error.code in codes(CALLERS) | codes(COMMON):
        assert caller
    if error.code in codes(DAEMONS):
        assert error.http_status == 500
    assert error.retryable == (error.code in codes(RETRYABLE))
    assert error.__doc__


def test_what_is_not_yet_there_is_what_can_be_tried_again() -> None:
    """Status 503 says that the same request may succeed later."""
    assert all(error.retryable for error in ERRORS.values() if error.http_status == 503)


def test_an_error_crosses_the_socket() -> None:
    """Code, text, whether to try again, and the request's id."""
    error = error_from_wire("DisabledException", "it is disabled", retryable=False, request_id="7")

    assert type(error) is ERRORS["DisabledException"]
    assert (str(error), error.message, error.retryable, error.request_id) == ("it is disabled",) * 2 + (False, "7")


def test_an_unknown_error_keeps_its_text() -> None:
    """A newer daemon may have errors that an older client does not know."""
    error = error_from_wire("NewerException", "what it said", retryable=True, request_id="7")

    assert type(error) is KmsError
    assert str(error) == "NewerException: what it said"
    assert error.retryable


def test_the_daemon_s_word_on_trying_again_counts() -> None:
    """For one error, not for its class."""
    error = error_from_wire("KMSInternalException", "", retryable=False, request_id="")

    assert not error.retryable
    assert KMSInternalError().retryable


def test_an_error_without_words_has_none() -> None:
    """As InvalidCiphertextException has none at AWS."""
    assert str(InvalidCiphertextError()) == InvalidCiphertextError().message == ""
