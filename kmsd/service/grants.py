"""Grants: making them, listing them, and taking them away by who gave or who got them.

Who may retire a grant is said by the grant: its retiring principal, and its grantee if RetireGrant is among its
operations. For administrators the host policy may allow it, for keys whose policy lets the account's root in; an Allow
in the key policy counts for nothing, a Deny anywhere refuses. So it is in AWS KMS, where that is IAM's part.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from kmsd.access.decision import DEFAULT_DENY, refusal
from kmsd.access.explanation import Step
from kmsd.access.facts import Facts
from kmsd.access.grammar import as_unix
from kmsd.access.grantees import read_grantee
from kmsd.access.rules import Decision, Effect
from kmsd.api import grants as api
from kmsd.api.errors import (
    InvalidGrantIdError,
    LimitExceededError,
    NotFoundError,
    UnsupportedOperationError,
    ValidationError,
)
from kmsd.api.operation import Operation
from kmsd.api.shapes import Empty, KeyManager
from kmsd.identity.directory import Directory
from kmsd.identity.principals import Caller, Principal
from kmsd.service.call import Call
from kmsd.service.grant_tokens import NONCE_BYTES, grant_id_in, make_token
from kmsd.service.granting import grant_of, pages, still_stands
from kmsd.service.identifiers import Arns
from kmsd.service.loading import loaded
from kmsd.service.pagination import Page, after, cut
from kmsd.service.records import KeyRecord, KeyRecords
from kmsd.store.base import Delete, Expect, Insert, RowChangedError, Store
from kmsd.store.rows import GrantRow

# AWS KMS quota: grants of one key.
GRANTS_PER_KEY = 50_000
# AWS KMS: the pairs of a constraint, and the characters of all of them.
MAX_CONSTRAINT_PAIRS = 8
MAX_CONSTRAINT_CHARACTERS = 384
# AWS KMS: a grant id has 64 hex digits.
_GRANT_ID_BYTES = 32
_GRANT_ID = re.compile("[0-9a-f]{64}")


class Grants:
    """Handlers of grants; `clock` gives seconds since 1970 UTC, `random` as many random bytes as it is asked for."""

    def __init__(
        self,
        *,
        store: Store,
        records: KeyRecords,
        arns: Arns,
        directory: Directory,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        self._store = store
        self._records = records
        self._arns = arns
        self._directory = directory
        self._clock = clock
        self._random = random
        # By key: held from authorizing to committing, so that who asks for many at once gets no more. Looking through
        # 50,000 grants takes seconds, so neither other keys wait for it nor whoever takes a grant away.
        self._making: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, call: Call, request: api.CreateGrantRequest, key: KeyRecord) -> api.CreateGrantResponse:
        """Make a grant, or find the one that was made by this name and is the same in everything else."""
        if key.row.key_manager == KeyManager.AWS:
            raise UnsupportedOperationError(f"{key.arn} is managed by kmsd and for its owner only")
        row = await self._row(call, request, key)
        making = self._making.setdefault(key.key_id, asyncio.Lock())
        async with making:
            grant_id = None
            while grant_id is None:
                grant_id = await self._make(call, request, row)
        token = make_token(grant_id, self._random(NONCE_BYTES))
        return api.CreateGrantResponse(grant_token=token, grant_id=grant_id)

    async def _make(self, call: Call, request: api.CreateGrantRequest, row: GrantRow) -> str | None:
        """Return the id of the grant, made or found.

        None if meanwhile somebody changed the key or the grant by which the caller may make others: nothing was done,
        and whether he still may has to be decided again.
        """
        # Others may have waited for their turn first, and whoever was let may have lost that meanwhile.
        key = await self._records.fetch(row.key_id, call.operation.key_access)
        await loaded(partial(call.use, key))
        parent = await self._parent(call, key, row)
        row = msgspec.structs.replace(row, parent="" if parent is None else parent.grant_id)
        if (made := await self._made_before(row)) is None and (
            await self._store.count_grants(key.key_id) >= GRANTS_PER_KEY
        ):
            raise LimitExceededError(f"{key.arn} has {GRANTS_PER_KEY} grants, which is the limit")
        call.end_dry_run(dry_run=request.dry_run)
        if made is not None:
            return made.grant_id
        expected = [Expect(one) for one in (key.row, parent) if one is not None]
        try:
            await self._store.commit(call.request_id, [*expected, Insert(row)])
        except RowChangedError:
            return None
        finally:
            # Also when it failed: a commit that could not be synced may have happened.
            self._records.forget(key.key_id)
        return row.grant_id

    async def _row(self, call: Call, request: api.CreateGrantRequest, key: KeyRecord) -> GrantRow:
        grantee = await self._principal(request.grantee_principal)
        retiring = None if request.retiring_principal is None else await self._principal(request.retiring_principal)
        constraints = request.constraints or api.GrantConstraints()
        _check_constraints(constraints)
        return GrantRow(
            grant_id=self._random(_GRANT_ID_BYTES).hex(),
            key_id=key.key_id,
            grantee=grantee.key,
            retiring="" if retiring is None else retiring.key,
            name=request.name or "",
            creation_ms=int(self._clock() * 1000),
            grantee_text=request.grantee_principal,
            retiring_text=request.retiring_principal or "",
            issuer=f"uid:{call.caller.uid}",
            operations=sorted(set(request.operations)),
            context_equals=constraints.encryption_context_equals,
            context_subset=constraints.encryption_context_subset,
            version=1,
        )

    async def _principal(self, text: str) -> Principal:
        names = await self._directory.known([as_unix(text)])
        try:
            return read_grantee(text, account=self._arns.account, names=names)
        except ValueError as error:
            raise ValidationError(str(error)) from None

    async def _parent(self, call: Call, key: KeyRecord, row: GrantRow) -> GrantRow | None:
        """Return the grant by which the caller may make a new one, None if policies let him.

        Who may by a policy may grant every operation, also what he may not do himself; who may by a grant, nothing that
        this grant does not permit.
        """
        if call.permits_without_grants(key):
            return None
        wanted = grant_of(row)
        async for page in pages(self._store, key.key_id, call.caller.grantees):
            for parent in page:
                if (
                    api.GrantOperation.CREATE_GRANT in parent.operations
                    and await still_stands(parent.grantee_text, parent.grantee, self._directory)
                    and grant_of(parent).covers(wanted)
                ):
                    return parent
        why = "because no grant that lets the caller create grants permits all that the new one would"
        raise refusal(call.caller, call.operation.action, key.arn, why, DEFAULT_DENY)

    async def _made_before(self, row: GrantRow) -> GrantRow | None:
        """Return the grant that asking for `row` again means: AWS compares everything, if there is a name at all."""
        if not row.name:
            return None
        found = await self._store.grants_named(row.key_id, row.name)
        return next((one for one in found if _asked_for(one) == _asked_for(row)), None)

    async def list(self, call: Call, request: api.ListGrantsRequest, key: KeyRecord) -> api.ListGrantsResponse:  # noqa: ARG002 - handlers share one form
        """List the grants of a key."""
        grantee = None if request.grantee_principal is None else (await self._principal(request.grantee_principal)).key
        if request.grant_id is not None:
            row = await self._store.grant(_checked_id(request.grant_id))
            fits = row is not None and row.key_id == key.key_id and grantee in {None, row.grantee}
            return api.ListGrantsResponse(grants=[self._entry(row)] if row is not None and fits else [])
        rows = await self._store.grants(
            key.key_id, grantee=grantee, after=after(request.marker), limit=request.limit + 1
        )
        return self._listed(*cut(rows, request.limit, lambda row: row.grant_id))

    async def list_retirable(self, call: Call, request: api.ListRetirableGrantsRequest) -> api.ListGrantsResponse:
        """List the grants that the caller may retire; administrators may ask for other principals', too."""
        retiring = (await self._principal(request.retiring_principal)).key
        if retiring not in call.caller.grantees and not call.caller.administrator:
            why = "because only administrators may list what others can retire"
            raise refusal(call.caller, call.operation.action, "*", why, DEFAULT_DENY)
        rows = await self._store.retirable_grants(retiring, after=after(request.marker), limit=request.limit + 1)
        shown, page = cut(rows, request.limit, lambda row: row.grant_id)
        if not call.caller.administrator:
            # Who has the id of an account that is gone learns nothing of what was its business.
            shown = [row for row in shown if await still_stands(row.retiring_text, row.retiring, self._directory)]
        return self._listed(shown, page)

    def _listed(self, shown: Sequence[GrantRow], page: Page) -> api.ListGrantsResponse:
        entries = [self._entry(row) for row in shown]
        return api.ListGrantsResponse(grants=entries, next_marker=page.next_marker, truncated=page.truncated)

    def _entry(self, row: GrantRow) -> api.GrantListEntry:
        constraints = api.GrantConstraints(
            encryption_context_equals=row.context_equals, encryption_context_subset=row.context_subset
        )
        return api.GrantListEntry(
            key_id=self._arns.key(row.key_id),
            grant_id=row.grant_id,
            name=row.name,
            creation_date=dt.datetime.fromtimestamp(row.creation_ms / 1000, dt.UTC),
            grantee_principal=row.grantee_text,
            retiring_principal=row.retiring_text or None,
            issuing_account=f"arn:aws:iam::{self._arns.account}:root",
            operations=[api.GrantOperation(operation) for operation in row.operations],
            constraints=None if constraints == api.GrantConstraints() else constraints,
        )

    async def retire(self, call: Call, request: api.RetireGrantRequest) -> Empty:
        """Delete a grant, as one whom it lets."""
        row = await self._to_retire(request)
        call.noted = {"grantId": row.grant_id}
        key = await self._records.fetch(row.key_id, call.operation.key_access)
        call.use(key, grants=_Retirable(row, await self._who_may_retire(row)))
        call.end_dry_run(dry_run=request.dry_run)
        await self._delete(call, row)
        return Empty()

    async def _who_may_retire(self, row: GrantRow) -> set[str]:
        """Return whom the grant itself lets retire it."""
        who = {}
        if row.retiring:
            who[row.retiring_text] = row.retiring
        if api.GrantOperation.RETIRE_GRANT in row.operations:
            who[row.grantee_text] = row.grantee
        return {key for text, key in who.items() if await still_stands(text, key, self._directory)}

    async def _to_retire(self, request: api.RetireGrantRequest) -> GrantRow:
        if request.grant_token is not None and request.key_id is None and request.grant_id is None:
            row = await self._store.grant(grant_id_in(request.grant_token))
            if row is None:
                raise NotFoundError("the grant that the token names does not exist any more")
            return row
        if request.grant_token is None and request.key_id is not None and request.grant_id is not None:
            return await self._grant_of(self._arns.parse_key(request.key_id).key_id, request.grant_id)
        raise ValidationError("a grant is named by its token, or else by its key's ARN and its id")

    async def revoke(self, call: Call, request: api.RevokeGrantRequest, key: KeyRecord) -> Empty:
        """Delete a grant, as one who may manage the key."""
        row = await self._grant_of(key.key_id, request.grant_id)
        call.end_dry_run(dry_run=request.dry_run)
        await self._delete(call, row)
        return Empty()

    async def _grant_of(self, key_id: str, grant_id: str) -> GrantRow:
        row = await self._store.grant(_checked_id(grant_id))
        if row is None or row.key_id != key_id:
            raise _no_such_grant(key_id, grant_id)
        return row

    async def _delete(self, call: Call, row: GrantRow) -> None:
        try:
            await self._store.commit(call.request_id, [Delete(row)])
        except RowChangedError:
            raise _no_such_grant(row.key_id, row.grant_id) from None  # another request was faster
        finally:
            # Also when it failed: a commit that could not be synced may have happened.
            self._records.forget(row.key_id)


class _Retirable:
    """Who may retire one grant, as the one grant that counts for RetireGrant (`kmsd.access.grants.Granting`)."""

    def __init__(self, row: GrantRow, who: set[str]) -> None:
        self._rule = f"grant {row.grant_id}"
        self._who = who

    def allowed(self, caller: Caller, action: str, facts: Facts) -> Decision | None:  # noqa: ARG002 - the interface's
        """Return that the grant lets `caller` retire it, if it does."""
        return None if caller.grantees.isdisjoint(self._who) else Decision(self._rule)

    def steps(self, caller: Caller, action: str, facts: Facts) -> tuple[Step, ...]:
        """Tell whether it does."""
        holds = self.allowed(caller, action, facts) is not None
        who = "its retiring principal, or its grantee where it permits RetireGrant"
        reason = f"the caller is {who}" if holds else f"the caller is not {who}"
        return (Step(self._rule, 0, "", Effect.ALLOW, holds, reason),)


def _check_constraints(constraints: api.GrantConstraints) -> None:
    equals, subset = constraints.encryption_context_equals, constraints.encryption_context_subset
    if equals is not None and subset is not None:
        raise ValidationError("a grant has EncryptionContextEquals or EncryptionContextSubset, not both")
    pairs = equals if equals is not None else subset
    if pairs is None:
        return
    if not 0 < len(pairs) <= MAX_CONSTRAINT_PAIRS:
        raise ValidationError(f"a constraint has 1 to {MAX_CONSTRAINT_PAIRS} pairs of an encryption context")
    if sum(len(name) + len(value) for name, value in pairs.items()) > MAX_CONSTRAINT_CHARACTERS:
        raise ValidationError(f"the pairs of a constraint have at most {MAX_CONSTRAINT_CHARACTERS} characters")


def _asked_for(row: GrantRow) -> GrantRow:
    """Return a grant as it was asked for, without what came of itself."""
    return msgspec.structs.replace(row, grant_id="", creation_ms=0, issuer="", parent="")


def _checked_id(grant_id: str) -> str:
    if not _GRANT_ID.fullmatch(grant_id):
        raise InvalidGrantIdError("a grant id is 64 hexadecimal digits in lower case")
    return grant_id


def _no_such_grant(key_id: str, grant_id: str) -> InvalidGrantIdError:
    return InvalidGrantIdError(f"key {key_id} has no grant {grant_id}")


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    api.CREATE_GRANT: Grants.create,
    api.LIST_GRANTS: Grants.list,
    api.LIST_RETIRABLE_GRANTS: Grants.list_retirable,
    api.RETIRE_GRANT: Grants.retire,
    api.REVOKE_GRANT: Grants.revoke,
}
