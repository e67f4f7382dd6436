"""Operations on credentials, which are ours: secrets that systemd hands to one unit, kept under that unit's key.

systemd asks for them on a socket of its own (LoadCredential=NAME:/run/kmsd/credential.sock); these operations are for
whoever puts them there.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from msgspec import Meta

from kmsd.api.operation import Cost, KeyAccess, KeyState, KeyUsage, Operation
from kmsd.api.shapes import Empty, Marker, Request, Response, Structure

# systemd lets a credential have 1 MiB; keys, tokens and certificates with their chains have less than this, which is
# what one request carries.
MAX_CREDENTIAL_BYTES = 32 * 1024
# systemd binds an address to ask from (`GetCredentialRequest`), which has room for both names together in so much:
# 107 bytes, without a zero, sixteen digits and "/unit/" and "/".
MAX_NAMES_CHARACTERS = 83
# systemd: a unit's name has at most 255 characters of these, with a suffix. Credentials are for services.
UnitName = Annotated[str, Meta(min_length=9, max_length=255, pattern=r"^[a-zA-Z0-9:_.\\@-]+\.service\Z")]
# systemd: what may be the name of a file, here without what shells and terminals take for their own.
CredentialName = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9_][a-zA-Z0-9_.@:-]*\Z")]
CredentialSecret = Annotated[memoryview, Meta(min_length=1, max_length=MAX_CREDENTIAL_BYTES)]


class CreateCredentialRequest(Request, frozen=True, kw_only=True):
    """Members of CreateCredential; with `overwrite` one that is there is replaced."""

    unit: UnitName
    name: CredentialName
    plaintext: CredentialSecret
    overwrite: bool = False


class CreateCredentialResponse(Response, frozen=True, kw_only=True):
    """What CreateCredential answers: the ARN of the unit's key."""

    key_id: str


class CredentialListEntry(Structure, frozen=True, kw_only=True):
    """A credential in a list; `length` is in bytes of plaintext."""

    unit: str
    name: str
    key_id: str
    length: int
    creation_date: dt.datetime


class ListCredentialsRequest(Request, frozen=True, kw_only=True):
    """Members of ListCredentials; with `unit` only that unit's."""

    unit: UnitName | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    marker: Marker | None = None


class ListCredentialsResponse(Response, frozen=True, kw_only=True):
    """What ListCredentials answers, ordered by unit and name."""

    credentials: list[CredentialListEntry]
    next_marker: str | None = None
    truncated: bool = False


class DeleteCredentialRequest(Request, frozen=True, kw_only=True):
    """Members of DeleteCredential."""

    unit: UnitName
    name: CredentialName


class GetCredentialRequest(Request, frozen=True, kw_only=True):
    """What systemd asks for on the socket of its own, in the address that it connects from."""

    unit: UnitName
    name: CredentialName

    @property
    def encryption_context(self) -> dict[str, str]:
        """What the secret is bound to: it opens for no other unit, and under no other name."""
        return {"unit": self.unit, "name": self.name}


CREATE_CREDENTIAL = Operation(
    name="CreateCredential",
    summary="Keep a secret for a unit, which systemd hands to it.",
    request=CreateCredentialRequest,
    response=CreateCredentialResponse,
    cost=Cost.STORE,
    read_only=False,
    audit_fields=("unit", "name", "overwrite"),
    audit_response=("key_id",),
)
LIST_CREDENTIALS = Operation(
    name="ListCredentials",
    summary="List the secrets that are kept for units.",
    request=ListCredentialsRequest,
    response=ListCredentialsResponse,
    cost=Cost.STORE,
    reply_bytes=128 * 1024,
    audit_fields=("unit", "limit", "marker"),
)
DELETE_CREDENTIAL = Operation(
    name="DeleteCredential",
    summary="Delete a secret that is kept for a unit.",
    request=DeleteCredentialRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    audit_fields=("unit", "name"),
)

# Not among the operations: no request can ask for it. Its record has the form of theirs.
GET_CREDENTIAL = Operation(
    name="GetCredential",
    summary="Hand a secret to systemd, for the unit it is kept for.",
    request=GetCredentialRequest,
    response=Empty,
    cost=Cost.STORE,
    resolves_keys=False,
    key_access=KeyAccess.ID_OR_ARN,
    usable_in=(KeyState.ENABLED,),
    usage=KeyUsage.ENCRYPT_DECRYPT,
    audit_fields=("unit", "name"),
    actions=("kms:Decrypt",),
)

OPERATIONS = (CREATE_CREDENTIAL, LIST_CREDENTIALS, DELETE_CREDENTIAL)
