"""What AWS KMS has and kmsd has not: everybody is told so, whoever he is and whatever he may do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kmsd.api.errors import UnsupportedOperationError
from kmsd.api.operation import Operation
from kmsd.api.unsupported import (
    CONNECT_CUSTOM_KEY_STORE,
    CREATE_CUSTOM_KEY_STORE,
    DELETE_CUSTOM_KEY_STORE,
    DESCRIBE_CUSTOM_KEY_STORES,
    DISCONNECT_CUSTOM_KEY_STORE,
    OPERATIONS,
    REPLICATE_KEY,
    UPDATE_CUSTOM_KEY_STORE,
    UPDATE_PRIMARY_REGION,
    CreateCustomKeyStoreRequest,
    CustomKeyStoreRequest,
    DescribeCustomKeyStoresRequest,
    ReplicateKeyRequest,
    UpdateCustomKeyStoreRequest,
    UpdatePrimaryRegionRequest,
)
from tests.support.embedded import ALICE, ROOT, Embedded, person

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
STORE = CustomKeyStoreRequest(custom_key_store_id="cks-1")
ASKED: list[tuple[Operation[Any, Any], msgspec.Struct, str]] = [
    (REPLICATE_KEY, ReplicateKeyRequest(key_id=KEY_ID, replica_region="us-east-1"), "multi-Region keys"),
    (UPDATE_PRIMARY_REGION, UpdatePrimaryRegionRequest(key_id=KEY_ID, primary_region="us-east-1"), "multi-Region keys"),
    (CONNECT_CUSTOM_KEY_STORE, STORE, "custom key stores"),
    (
        CREATE_CUSTOM_KEY_STORE,
        CreateCustomKeyStoreRequest(custom_key_store_name="a", key_store_password=memoryview(b"password")),
        "custom key stores",
    ),
    (DELETE_CUSTOM_KEY_STORE, STORE, "custom key stores"),
    (DESCRIBE_CUSTOM_KEY_STORES, DescribeCustomKeyStoresRequest(), "custom key stores"),
    (DISCONNECT_CUSTOM_KEY_STORE, STORE, "custom key stores"),
    (UPDATE_CUSTOM_KEY_STORE, UpdateCustomKeyStoreRequest(custom_key_store_id="cks-1"), "custom key stores"),
]
STRANGER = person(4711, user=None, gid=4711)


def test_all_of_them_are_tried_here() -> None:
    """Each is asked below."""
    assert {operation for operation, _, _ in ASKED} == set(OPERATIONS)


@pytest.mark.parametrize("sealed", [False, True], ids=["unsealed", "sealed"])
async def test_everybody_is_told_what_is_not_offered(service: Embedded, sealed: bool) -> None:
    """Administrators, users, and who may do nothing at all; each answer is on record, and nothing else of it."""
    if sealed:
        await service.gate.close(0)
    before = service.store.sequence
    for operation, request, missing in ASKED:
        for session in (ROOT, ALICE, STRANGER):
            with pytest.raises(UnsupportedOperationError, match=f"^{operation.name} is not offered: .*{missing}"):
                await service.ask(session, operation, request)

            record = service.newest()
            assert (record["eventName"], record["errorCode"]) == (operation.name, "UnsupportedOperationException")
            assert record["eventType"] == "ApiCall"
    assert service.store.sequence == before
