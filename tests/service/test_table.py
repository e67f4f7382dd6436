"""The table of operations fails closed, and lets nothing undeclared into a record."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kmsd.api import OPERATIONS
from kmsd.api.keys import CREATE_KEY, LIST_KEYS, CreateKeyRequest, ListKeysRequest
from kmsd.api.operation import Cost, Operation
from kmsd.api.shapes import Tag
from kmsd.api.symmetric import DECRYPT, ENCRYPT, GENERATE_RANDOM, DecryptRequest, EncryptRequest
from kmsd.metrics.meter import OF_REQUESTS, REQUEST_BOUNDS, Meter, Tally
from kmsd.service.table import Entry, bind, make_table

ARN = "arn:aws:kms:local-host-1:123456789012:key/x"


METER = Meter(OF_REQUESTS)


def handler(*arguments: Any) -> tuple[Any, ...]:
    return arguments


def test_every_operation_needs_a_handler_and_every_handler_an_operation() -> None:
    """Otherwise nothing starts, and the error names what is missing."""
    handlers = dict.fromkeys(OPERATIONS, handler)
    assert set(make_table(OPERATIONS, handlers, METER)) == {operation.name for operation in OPERATIONS}

    with pytest.raises(TypeError, match="Decrypt"):
        make_table(OPERATIONS, {operation: handler for operation in OPERATIONS if operation is not DECRYPT}, METER)
    with pytest.raises(TypeError, match="GenerateRandom"):
        make_table([one for one in OPERATIONS if one is not GENERATE_RANDOM], handlers, METER)


def test_handlers_are_bound_to_what_serves_them() -> None:
    """A module's table holds plain functions."""
    bound = bind({ENCRYPT: handler}, "service")

    assert bound[ENCRYPT](1, 2) == ("service", 1, 2)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_only_cryptography_is_served_at_once(operation: Operation[Any, Any]) -> None:
    """Everything else awaits something."""
    assert Entry(operation, handler, Tally(REQUEST_BOUNDS)).synchronous == (operation.cost is Cost.CRYPTOGRAPHY)


def test_a_record_has_declared_members_only() -> None:
    """Plaintext and ciphertext are no declared members; absent members are left out."""
    request = EncryptRequest(key_id=ARN, plaintext=memoryview(b"secret"), encryption_context={"a": "b"})
    assert Entry(ENCRYPT, handler, Tally(REQUEST_BOUNDS)).parameters(request) == {
        "keyId": ARN,
        "encryptionContext": {"a": "b"},
        "encryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "dryRun": False,
    }
    parameters = Entry(DECRYPT, handler, Tally(REQUEST_BOUNDS)).parameters(
        DecryptRequest(ciphertext_blob=b"x", grant_tokens=["token"])
    )
    assert parameters is not None
    assert set(parameters) == {"encryptionAlgorithm", "dryRun"}


def test_nothing_is_recorded_of_what_could_not_be_read() -> None:
    """A request that was not decoded has no members."""
    assert Entry(LIST_KEYS, handler, Tally(REQUEST_BOUNDS)).parameters(None) is None
    assert Entry(LIST_KEYS, handler, Tally(REQUEST_BOUNDS)).parameters(ListKeysRequest()) == {"limit": 100}


def test_structures_are_recorded_in_the_trail_s_form() -> None:
    """As JSON, with names in lowerCamel on every level; text and maps of the caller's are left as they are."""
    request = CreateKeyRequest(description="", tags=[Tag(tag_key="Team Blue", tag_value="")])

    parameters = Entry(CREATE_KEY, handler, Tally(REQUEST_BOUNDS)).parameters(request)

    assert parameters is not None
    assert parameters["tags"] == [{"tagKey": "Team Blue", "tagValue": ""}]
    assert "description" not in parameters
    assert msgspec.json.decode(msgspec.json.encode(parameters)) == parameters
