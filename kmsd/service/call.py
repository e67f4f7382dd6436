"""One request being served: who calls, what was decided, what the audit trail has to tell."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from kmsd.access.decision import Authorizer, NotAuthorizedError
from kmsd.access.facts import Values
from kmsd.access.grants import Granting
from kmsd.api.errors import DisabledError, DryRunOperationError, InvalidKeyUsageError, KmsError, KMSInvalidStateError
from kmsd.api.operation import KeyState, Operation
from kmsd.audit.record import Actor, Kind, Record
from kmsd.identity.principals import Caller
from kmsd.service.audit_budget import AuditBudget
from kmsd.service.facts import CallFacts, Surroundings
from kmsd.service.records import KeyRecord
from kmsd.service.refusals import Refusal

# How AWS words each state in which a key cannot be used; the rest are told by the state's own name.
_STATE_WORDS = {
    KeyState.PENDING_DELETION: "is pending deletion.",
    KeyState.PENDING_IMPORT: "is pending import.",
    KeyState.UNAVAILABLE: "is unavailable.",
    KeyState.CREATING: "is creating.",
    KeyState.UPDATING: "is updating.",
}


class UsedWhilePendingDeletionError(KMSInvalidStateError):
    """Somebody who may use a key wants to, and it is to be destroyed."""

    def __init__(self, arn: str, message: str) -> None:
        super().__init__(message)
        self.arn = arn


# Uids that passwd does not know (subordinate, dynamic, container) share one place: who can make uids at will must not
# get a fresh allowance with each.
UNKNOWN_UIDS = -1


class Session:
    """One connected peer; `place` is under what its use of the daemon is counted: its uid, if passwd knows it."""

    __slots__ = ("actor", "caller", "place")

    def __init__(self, caller: Caller, actor: Actor) -> None:
        self.caller = caller
        self.actor = actor
        self.place = caller.uid if caller.user is not None else UNKNOWN_UIDS


class Call:
    """One request being served; made by the pipeline, used by the handlers.

    It is also the facts that conditions ask for, found when one asks. `request` is its members, and `named` the
    identifier by which they name the key that is used next. `counterpart` is the other key of an operation that uses
    two, and `context` the encryption context where it is no member of the request.
    """

    __slots__ = (
        "_action",
        "_authorizer",
        "_key",
        "_surroundings",
        "_told",
        "began",
        "budget",
        "caller",
        "change",
        "context",
        "counterpart",
        "decision",
        "named",
        "noted",
        "operation",
        "refusal",
        "request",
        "request_id",
        "resources",
        "session",
        "started",
    )

    def __init__(
        self,
        session: Session,
        operation: Operation[Any, Any],
        request_id: str,
        authorizer: Authorizer,
        surroundings: Surroundings,
        budget: AuditBudget,
        started: float = 0.0,
    ) -> None:
        self.session = session
        self.caller = session.caller
        self.operation = operation
        self.request_id = request_id
        # When it came, by the clock of who measures that.
        self.started = started
        self.resources: list[str] = []
        self.decision: str | None = None
        # Whether a `begin` or `intent` record stands in the trail, so that the last record is its counterpart.
        self.began = False
        # What goes on when the peer hangs up, if it changes something.
        self.change: asyncio.Future[Any] | None = None
        # What the trail has to tell of it that stands in no member of the request.
        self.noted: Mapping[str, Any] | None = None
        # What its records are charged to.
        self.budget = budget
        self.request: msgspec.Struct | None = None
        self.named: str | None = None
        self.counterpart: KeyRecord | None = None
        self.context: Mapping[str, str] | None = None
        # Why policies refused it, unless the caller was refused too often for that.
        self.refusal: Refusal | None = None
        self._authorizer = authorizer
        self._surroundings = surroundings
        self._action = operation.action
        self._key: KeyRecord | None = None
        # The facts for this action and key, once a condition has asked.
        self._told: CallFacts | None = None

    def permit(self, action: str | None = None, *, resource: str = "*") -> None:
        """Let the host policy decide about something that is no key; raises AccessDeniedError."""
        self._authorize(action or self.operation.action, resource, None, None)
        self.check_budget()

    def use(self, key: KeyRecord, action: str | None = None, *, grants: Granting | None = None) -> None:
        """Make sure that the caller may act on `key` and that the key can be used this way.

        Authorization comes first: who may not use a key learns nothing of its state. `grants` are those that count,
        unless all of the key's do. Raises AccessDeniedError, DisabledError, KMSInvalidStateError or
        InvalidKeyUsageError, and NotLoadedError when the caller's grants have to be read first.
        """
        self.permit_key(key, action, grants=grants)
        if key.state not in self.operation.usable_in:
            raise self._state_error(key)
        if self.operation.usage is not None and key.usage is not self.operation.usage:
            raise InvalidKeyUsageError(
                f"{key.arn} key usage is {key.usage} which is not valid for {self.operation.name}."
            )
        self.check_budget()

    def permit_key(self, key: KeyRecord, action: str | None = None, *, grants: Granting | None = None) -> None:
        """Make sure that the caller may act on `key`, whatever its state is.

        `grants` are those that count, unless all of the key's do. Raises AccessDeniedError, and NotLoadedError when the
        caller's grants have to be read first.
        """
        if key.arn not in self.resources:
            self.resources.append(key.arn)
        self._authorize(action or self.operation.action, key.arn, key, key.grants if grants is None else grants)

    def values(self, key: str) -> Values:
        """Return the values of a condition key."""
        return self._facts().values(key)

    def encryption_context(self) -> dict[str, str] | None:
        """Return the encryption context."""
        return self._facts().encryption_context()

    def _facts(self) -> CallFacts:
        if self._told is None:
            self._told = CallFacts(
                self._surroundings,
                self.caller,
                self._action,
                request=self.request,
                key=self._key,
                named=self.named,
                counterpart=self.counterpart,
                context=self.context,
            )
        return self._told

    def permits_without_grants(self, key: KeyRecord) -> bool:
        """Tell whether policies alone let the caller do what the operation does."""
        try:
            self._authorizer.authorize(
                self.caller, self.operation.action, resource=key.arn, key_policy=key.policy, facts=self
            )
        except NotAuthorizedError:
            return False
        return True

    def _authorize(self, action: str, resource: str, key: KeyRecord | None, grants: Granting | None) -> None:
        self._action = action
        self._key = key
        self._told = None
        policy = None if key is None else key.policy
        try:
            self.decision = self._authorizer.authorize(
                self.caller, action, resource=resource, key_policy=policy, facts=self, grants=grants
            ).rule
        except NotAuthorizedError:
            if self.budget.pays_explanation():
                why = self._authorizer.explain(
                    self.caller, action, resource=resource, key_policy=policy, facts=self, grants=grants
                )
                self.refusal = Refusal(self.request_id, self.operation.name, self.caller, action, resource, why)
            raise

    def check_budget(self) -> None:
        """Raise ThrottlingError if the caller has used up his audit budget.

        It comes last: what would be refused anyway is refused, and counted, for what it is. Whatever administrators
        have done, they can look, seal and unseal.
        """
        if self.budget.exceeded and not (self.operation.works_sealed and self.caller.administrator):
            raise self.budget.refusal()

    def _state_error(self, key: KeyRecord) -> KmsError:
        if self.operation.usable_in == (KeyState.PENDING_DELETION,):
            return KMSInvalidStateError(f"{key.arn} is not pending deletion.")
        if key.state is KeyState.DISABLED:
            return DisabledError(f"{key.arn} is disabled.")
        message = f"{key.arn} {_STATE_WORDS.get(key.state, 'is not in a state for this operation.')}"
        is_use = self.operation.usage is not None and not self.is_dry_run
        if key.state is KeyState.PENDING_DELETION and is_use:
            return UsedWhilePendingDeletionError(key.arn, message)
        return KMSInvalidStateError(message)

    @property
    def is_dry_run(self) -> bool:
        """Whether it is only asked whether the request would be served."""
        return getattr(self.request, "dry_run", False)

    def end_dry_run(self, *, dry_run: bool) -> None:
        """Stop here if only a dry run was asked for; raises DryRunOperationError."""
        if dry_run:
            raise DryRunOperationError("The request would have succeeded, but the DryRun option is set.")

    def record(
        self,
        kind: Kind,
        *,
        parameters: dict[str, Any] | None,
        response: Mapping[str, Any] | None = None,
        error: KmsError | None = None,
        details: dict[str, Any] | None = None,
    ) -> Record:
        """Return the audit record of this call as it stands; of a refusal it tells what refused it."""
        return Record(
            kind=kind,
            event_name=self.operation.name,
            actor=self.session.actor,
            request_id=self.request_id,
            read_only=self.operation.read_only,
            resources=tuple(self.resources),
            request_parameters=parameters,
            response_elements=dict(response) if response else None,
            error_code=error.code if error else None,
            error_message=error.message if error else None,
            # What was allowed before, on another key, is not what decided.
            decision=error.rule if isinstance(error, NotAuthorizedError) else self.decision,
            details=details,
        )
