"""Operations of AWS KMS that kmsd does not offer: keys of several Regions, and key stores elsewhere.

They are declared, so that who asks is told so, and is not told that there is no such operation. Nobody needs a
permission for that, and nothing is changed: all of them are read-only here, and their responses are never given.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from kmsd.api.operation import Cost, KeyAccess, Operation
from kmsd.api.shapes import Description, Empty, KeyIdentifier, Limit, Marker, PolicyText, Request, Structure, Tag

_RequestT = TypeVar("_RequestT", bound=Request)

# AWS's lengths; what forms its texts have is not looked at, as nothing is done with them.
Region = Annotated[str, Meta(min_length=1, max_length=32)]
CustomKeyStoreId = Annotated[str, Meta(min_length=1, max_length=64)]
CustomKeyStoreName = Annotated[str, Meta(min_length=1, max_length=256)]
CloudHsmClusterId = Annotated[str, Meta(min_length=19, max_length=24)]
XksUri = Annotated[str, Meta(min_length=10, max_length=128)]
XksServiceName = Annotated[str, Meta(min_length=20, max_length=64)]
XksServiceOwner = Annotated[str, Meta(min_length=12, max_length=12)]
# AWS has text here, too. What is secret is bytes, which are wiped with the request that had them.
KeyStorePassword = Annotated[memoryview, Meta(min_length=7, max_length=32)]
XksAccessKeyId = Annotated[memoryview, Meta(min_length=20, max_length=30)]
XksSecretAccessKey = Annotated[memoryview, Meta(min_length=43, max_length=64)]


class CustomKeyStoreType(enum.StrEnum):
    """Where a custom key store is."""

    AWS_CLOUDHSM = "AWS_CLOUDHSM"
    EXTERNAL_KEY_STORE = "EXTERNAL_KEY_STORE"


class XksProxyConnectivityType(enum.StrEnum):
    """How AWS KMS reaches the proxy of an external key store."""

    PUBLIC_ENDPOINT = "PUBLIC_ENDPOINT"
    VPC_ENDPOINT_SERVICE = "VPC_ENDPOINT_SERVICE"


class XksProxyAuthenticationCredential(Structure, frozen=True, kw_only=True):
    """What AWS KMS shows to the proxy of an external key store."""

    access_key_id: XksAccessKeyId
    raw_secret_access_key: XksSecretAccessKey


class ReplicateKeyRequest(Request, frozen=True, kw_only=True):
    """Members of ReplicateKey."""

    key_id: KeyIdentifier
    replica_region: Region
    policy: PolicyText | None = None
    bypass_policy_lockout_safety_check: bool = False
    description: Description = ""
    tags: Annotated[list[Tag], Meta(max_length=50)] = []


class UpdatePrimaryRegionRequest(Request, frozen=True, kw_only=True):
    """Members of UpdatePrimaryRegion."""

    key_id: KeyIdentifier
    primary_region: Region


class CustomKeyStoreRequest(Request, frozen=True, kw_only=True):
    """Members of ConnectCustomKeyStore, DeleteCustomKeyStore and DisconnectCustomKeyStore."""

    custom_key_store_id: CustomKeyStoreId


class CreateCustomKeyStoreRequest(Request, frozen=True, kw_only=True):
    """Members of CreateCustomKeyStore."""

    custom_key_store_name: CustomKeyStoreName
    cloud_hsm_cluster_id: CloudHsmClusterId | None = None
    trust_anchor_certificate: Annotated[str, Meta(min_length=1, max_length=5000)] | None = None
    key_store_password: KeyStorePassword | None = None
    custom_key_store_type: CustomKeyStoreType | None = None
    xks_proxy_uri_endpoint: XksUri | None = None
    xks_proxy_uri_path: XksUri | None = None
    xks_proxy_vpc_endpoint_service_name: XksServiceName | None = None
    xks_proxy_vpc_endpoint_service_owner: XksServiceOwner | None = None
    xks_proxy_authentication_credential: XksProxyAuthenticationCredential | None = None
    xks_proxy_connectivity: XksProxyConnectivityType | None = None


class DescribeCustomKeyStoresRequest(Request, frozen=True, kw_only=True):
    """Members of DescribeCustomKeyStores."""

    custom_key_store_id: CustomKeyStoreId | None = None
    custom_key_store_name: CustomKeyStoreName | None = None
    limit: Limit = 100
    marker: Marker | None = None


class UpdateCustomKeyStoreRequest(Request, frozen=True, kw_only=True):
    """Members of UpdateCustomKeyStore."""

    custom_key_store_id: CustomKeyStoreId
    new_custom_key_store_name: CustomKeyStoreName | None = None
    key_store_password: KeyStorePassword | None = None
    cloud_hsm_cluster_id: CloudHsmClusterId | None = None
    xks_proxy_uri_endpoint: XksUri | None = None
    xks_proxy_uri_path: XksUri | None = None
    xks_proxy_vpc_endpoint_service_name: XksServiceName | None = None
    xks_proxy_vpc_endpoint_service_owner: XksServiceOwner | None = None
    xks_proxy_authentication_credential: XksProxyAuthenticationCredential | None = None
    xks_proxy_connectivity: XksProxyConnectivityType | None = None


_SECRET = {"key_store_password", "xks_proxy_authentication_credential"}


def _unsupported(name: str, request: type[_RequestT], *, frame_bytes: int = 64 * 1024) -> Operation[_RequestT, Empty]:
    return Operation(
        name=name,
        summary="Not offered: answers UnsupportedOperationException.",
        request=request,
        response=Empty,
        cost=Cost.STATUS,
        key_access=KeyAccess.NONE,
        # Everybody is told the same, whatever he may do with which key.
        resolves_keys=False,
        works_sealed=True,
        frame_bytes=frame_bytes,
        audit_fields=tuple(member for member in request.__struct_fields__ if member not in _SECRET),
    )


REPLICATE_KEY = _unsupported(
    "ReplicateKey",
    ReplicateKeyRequest,
    # A policy may have 131,072 characters, as with CreateKey.
    frame_bytes=192 * 1024,
)
UPDATE_PRIMARY_REGION = _unsupported("UpdatePrimaryRegion", UpdatePrimaryRegionRequest)
CONNECT_CUSTOM_KEY_STORE = _unsupported("ConnectCustomKeyStore", CustomKeyStoreRequest)
CREATE_CUSTOM_KEY_STORE = _unsupported("CreateCustomKeyStore", CreateCustomKeyStoreRequest)
DELETE_CUSTOM_KEY_STORE = _unsupported("DeleteCustomKeyStore", CustomKeyStoreRequest)
DESCRIBE_CUSTOM_KEY_STORES = _unsupported("DescribeCustomKeyStores", DescribeCustomKeyStoresRequest)
DISCONNECT_CUSTOM_KEY_STORE = _unsupported("DisconnectCustomKeyStore", CustomKeyStoreRequest)
UPDATE_CUSTOM_KEY_STORE = _unsupported("UpdateCustomKeyStore", UpdateCustomKeyStoreRequest)

MULTI_REGION: tuple[Operation[Any, Empty], ...] = (REPLICATE_KEY, UPDATE_PRIMARY_REGION)
CUSTOM_KEY_STORES: tuple[Operation[Any, Empty], ...] = (
    CONNECT_CUSTOM_KEY_STORE,
    CREATE_CUSTOM_KEY_STORE,
    DELETE_CUSTOM_KEY_STORE,
    DESCRIBE_CUSTOM_KEY_STORES,
    DISCONNECT_CUSTOM_KEY_STORE,
    UPDATE_CUSTOM_KEY_STORE,
)
OPERATIONS = (*MULTI_REGION, *CUSTOM_KEY_STORES)
