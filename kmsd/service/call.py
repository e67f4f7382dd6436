"""One request being served: who calls, what was decided, what the audit trail has to tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmsd.access.decision import Authorizer
from kmsd.access.facts import UNDETERMINED, Undetermined
from kmsd.access.policy import Policy
from kmsd.api.errors import DisabledError, DryRunOperationError, InvalidKeyUsageError, KmsError, KMSInvalidStateError
from kmsd.api.operation import KeyState, Operation
from kmsd.audit.record import Actor, Kind, Record
from kmsd.identity.principals import Caller
from kmsd.service.audit_budget import AuditBudget
from kmsd.service.records import KeyRecord

# How AWS words each state in which a key cannot be used; the rest are told by the state's own name.
_STATE_WORDS = {
    KeyState.PENDING_DELETION: "is pending deletion.",
    KeyState.PENDING_IMPORT: "is pending import.",
    KeyState.UNAVAILABLE: "is unavailable.",
    KeyState.CREATING: "is creating.",
    KeyState.UPDATING: "is updating.",
}


# Uids that passwd does not know (subordinate, dynamic, container) share one place: who can make uids at will must not
# get a fresh allowance with each.
UNKNOWN_UIDS = -1


class UnknownFacts:
    """A request about which nothing can be told: conditions that ask refuse it."""

    def values(self, key: str) -> Undetermined:  # noqa: ARG002 - whatever is asked
        """Return that it cannot be told."""
        return UNDETERMINED

    def encryption_context(self) -> None:
        """Return that there can be none."""


UNKNOWN_FACTS = UnknownFacts()


class Session:
    """One connected peer; `place` is under what its use of the daemon is counted: its uid, if passwd knows it."""

    __slots__ = ("actor", "caller", "place")

    def __init__(self, caller: Caller, actor: Actor) -> None:
        self.caller = caller
        self.actor = actor
        self.place = caller.uid if caller.user is not None else UNKNOWN_UIDS


class Call:
    """One request being served; made by the pipeline, used by the handlers."""

    __slots__ = (
        "_authorizer",
        "began",
        "budget",
        "caller",
        "decision",
        "operation",
        "request_id",
        "resources",
        "session",
    )

    def __init__(
        self,
        session: Session,
        operation: Operation[Any, Any],
        request_id: str,
        authorizer: Authorizer,
        budget: AuditBudget,
    ) -> None:
        self.session = session
        self.caller = session.caller
        self.operation = operation
        self.request_id = request_id
        self.resources: list[str] = []
        self.decision: str | None = None
        # Whether a `begin` or `intent` record stands in the trail, so that the last record is its counterpart.
        self.began = False
        # What its records are charged to.
        self.budget = budget
        self._authorizer = authorizer

    def permit(self, action: str | None = None, *, resource: str = "*") -> None:
        """Let the host policy decide about something that is no key; raises AccessDeniedError."""
        self._authorize(action or self.operation.action, resource, None)

    def use(self, key: KeyRecord, action: str | None = None) -> None:
        """Make sure that the caller may act on `key` and that the key can be used this way.

        Authorization comes first: who may not use a key learns nothing of its state. Raises AccessDeniedError,
        DisabledError, KMSInvalidStateError or InvalidKeyUsageError.
        """
        if key.arn not in self.resources:
            self.resources.append(key.arn)
        self._authorize(action or self.operation.action, key.arn, key.policy)
        if key.state not in self.operation.usable_in:
            raise _state_error(key)
        if self.operation.usage is not None and key.usage is not self.operation.usage:
            raise InvalidKeyUsageError(
                f"{key.arn} key usage is {key.usage} which is not valid for {self.operation.name}."
            )

    def _authorize(self, action: str, resource: str, policy: Policy | None) -> None:
        self.decision = self._authorizer.authorize(
            self.caller, action, resource=resource, key_policy=policy, facts=UNKNOWN_FACTS
        ).rule
        # Only now: what would be refused anyway is refused, and counted, for what it is. Whatever administrators have
        # done, they can look, seal and unseal.
        if self.budget.exceeded and not (self.operation.works_sealed and self.caller.administrator):
            raise self.budget.refusal()

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
        """Return the audit record of this call as it stands."""
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
            decision=self.decision,
            details=details,
        )


def _state_error(key: KeyRecord) -> KmsError:
    if key.state is KeyState.DISABLED:
        return DisabledError(f"{key.arn} is disabled.")
    words = _STATE_WORDS.get(key.state, "is not in a state for this operation.")
    return KMSInvalidStateError(f"{key.arn} {words}")
