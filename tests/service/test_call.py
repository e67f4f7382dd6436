"""A call: authorization first, then state, then usage, each in AWS's words."""

from __future__ import annotations

from typing import Any

import pytest

from kmsd.access.decision import Authorizer, HostPolicy
from kmsd.access.policy import default_key_policy, parse_policy
from kmsd.api import BY_NAME
from kmsd.api.errors import (
    AccessDeniedError,
    DisabledError,
    DryRunOperationError,
    InvalidKeyUsageError,
    KMSInvalidStateError,
)
from kmsd.api.operation import ALL_STATES, KeyState, KeyUsage
from kmsd.audit.record import Kind
from kmsd.service.audit_budget import AuditBudget
from kmsd.service.call import Call, Session
from kmsd.service.facts import Surroundings
from kmsd.service.key_use import KeyUse, Tracking
from kmsd.service.records import KeyRecord
from kmsd.store.rows import KeyRow
from tests.support.embedded import ACCOUNT, ALICE, BOB, HostNames
from tests.support.no_grants import NoGrants

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:local-host-1:{ACCOUNT}:key/{KEY_ID}"
NAMES = HostNames()
AUTHORIZER = Authorizer(HostPolicy.load(None, account=ACCOUNT, names=NAMES))


def key(state: KeyState = KeyState.ENABLED, usage: KeyUsage = KeyUsage.ENCRYPT_DECRYPT) -> KeyRecord:
    policy = default_key_policy(ACCOUNT, 1000, "alice")
    row = KeyRow(
        key_id=KEY_ID,
        creator_uid=1000,
        creation_ms=0,
        description="",
        key_usage=usage,
        key_spec="SYMMETRIC_DEFAULT",
        key_state=state,
        origin="AWS_KMS",
        key_manager="CUSTOMER",
        policy=policy,
        policy_principals={},
        current_material=1,
        version=1,
    )
    return KeyRecord(
        row,
        ARN,
        parse_policy(policy, account=ACCOUNT, names=NAMES),
        aliases=(),
        grants=NoGrants(),
        use=KeyUse(KEY_ID, Tracking(lambda: 0.0, lambda: 0)),
        expires=0.0,
    )


def call(operation: str = "Encrypt", session: Session = ALICE) -> Call:
    budget = AuditBudget(1000, bytes_per_second=1, burst_bytes=1, clock=lambda: 0.0, wall_clock=lambda: 0.0)
    return Call(session, BY_NAME[operation], "request-1", AUTHORIZER, Surroundings(ACCOUNT, lambda: 0.0), budget)


@pytest.mark.parametrize("state", ALL_STATES)
@pytest.mark.parametrize("usage", [KeyUsage.ENCRYPT_DECRYPT, KeyUsage.SIGN_VERIFY])
def test_who_is_refused_is_told_nothing_else(state: KeyState, usage: KeyUsage) -> None:
    """State and usage are looked at after authorization, and the record names the key that was asked for."""
    refused = call(session=BOB)

    with pytest.raises(AccessDeniedError) as refusal:
        refused.use(key(state, usage))

    assert str(state.value).lower() not in str(refusal.value).lower()
    assert refused.resources == [ARN]


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (KeyState.DISABLED, DisabledError, "is disabled."),
        (KeyState.PENDING_DELETION, KMSInvalidStateError, "is pending deletion."),
        (KeyState.PENDING_IMPORT, KMSInvalidStateError, "is pending import."),
        (KeyState.UNAVAILABLE, KMSInvalidStateError, "is unavailable."),
        (KeyState.CREATING, KMSInvalidStateError, "is creating."),
    ],
)
def test_a_state_that_does_not_allow_it_is_told(state: KeyState, error: type[Exception], words: str) -> None:
    """AWS: `<key ARN> is ...`."""
    with pytest.raises(error) as refusal:
        call().use(key(state))

    assert str(refusal.value) == f"{ARN} {words}"


def test_a_usage_that_does_not_fit_is_told() -> None:
    """After the state."""
    with pytest.raises(InvalidKeyUsageError, match="SIGN_VERIFY which is not valid for Encrypt"):
        call().use(key(usage=KeyUsage.SIGN_VERIFY))
    with pytest.raises(DisabledError):
        call().use(key(KeyState.DISABLED, KeyUsage.SIGN_VERIFY))


def test_what_is_allowed_is_recorded_with_its_rule() -> None:
    """The record has who, what, which keys, each once, and why."""
    made = call("ReEncrypt")
    made.use(key(), "kms:ReEncryptFrom")
    made.use(key(), "kms:ReEncryptTo")

    record = made.record(Kind.REQUEST, parameters={"a": "b"})

    assert record.resources == (ARN,)
    assert record.decision == 'key policy: "Allow the creator to manage and use the key" (statement 2)'
    assert (record.event_name, record.request_id, record.actor) == ("ReEncrypt", "request-1", ALICE.actor)
    assert (record.error_code, record.response_elements) == (None, None)


def test_a_refusal_is_recorded_with_its_error() -> None:
    """Code and message, as the caller is told them."""
    error: Any = DisabledError("it is disabled")

    record = call().record(Kind.REQUEST, parameters=None, error=error)

    assert (record.error_code, record.error_message) == ("DisabledException", "it is disabled")


def test_what_is_about_no_key_the_host_policy_decides() -> None:
    """Everybody may list, not everybody may read the trail."""
    call("ListKeys", BOB).permit()
    with pytest.raises(AccessDeniedError, match="because no host policy allows it"):
        call("GetAuditRecords", ALICE).permit()


def test_a_dry_run_ends_as_one() -> None:
    """With AWS's own words."""
    call().end_dry_run(dry_run=False)
    with pytest.raises(DryRunOperationError, match="The request would have succeeded, but the DryRun option is set"):
        call().end_dry_run(dry_run=True)
