"""Operations on key policies and on what decides beside them, and on what explains decisions."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from kmsd.api.grants import PrincipalText
from kmsd.api.operation import Cost, KeyAccess, Operation
from kmsd.api.shapes import Empty, EncryptionContext, KeyIdentifier, Marker, PolicyText, Request, Response, Structure

# AWS: a key has one policy, and this is its name.
POLICY_NAME = "default"
PolicyName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^\w+\Z")]
ActionName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[Kk][Mm][Ss]:[A-Za-z0-9]+\Z")]
# Values of condition keys: few and short enough to be recorded.
GivenValues = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=256)],
        Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(max_length=8)],
    ],
    Meta(max_length=16),
]
# What is asked about at once: more than there are operations.
MAX_ACTIONS = 128
# The statements of a trace: those of a key policy and of some host policies that fit the action.
MAX_TRACE = 500


class GetKeyPolicyRequest(Request, frozen=True, kw_only=True):
    """Members of GetKeyPolicy."""

    key_id: KeyIdentifier
    policy_name: PolicyName = POLICY_NAME


class GetKeyPolicyResponse(Response, frozen=True, kw_only=True):
    """What GetKeyPolicy answers: the document as it was put."""

    policy: str
    policy_name: str


class PutKeyPolicyRequest(Request, frozen=True, kw_only=True):
    """Members of PutKeyPolicy; a policy that the caller could not change again is refused unless that is bypassed."""

    key_id: KeyIdentifier
    policy: PolicyText
    policy_name: PolicyName = POLICY_NAME
    bypass_policy_lockout_safety_check: bool = False


class ListKeyPoliciesRequest(Request, frozen=True, kw_only=True):
    """Members of ListKeyPolicies."""

    key_id: KeyIdentifier
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    marker: Marker | None = None


class ListKeyPoliciesResponse(Response, frozen=True, kw_only=True):
    """What ListKeyPolicies answers: always the one name."""

    policy_names: list[str]
    next_marker: str | None = None
    truncated: bool = False


class Outcome(enum.StrEnum):
    """How a decision ends, in the words of IAM's policy simulator."""

    ALLOWED = "allowed"
    EXPLICIT_DENY = "explicitDeny"
    IMPLICIT_DENY = "implicitDeny"


class TraceEntry(Structure, frozen=True, kw_only=True):
    """What was looked at for a decision: a statement or a grant, and why it holds or not.

    `origin` is "key policy", "host policy FILE" or "grant ID"; `number` counts the statements of a document from 1.
    """

    origin: str
    number: int = 0
    sid: str = ""
    effect: str
    holds: bool
    reason: str


class SimulationResult(Structure, frozen=True, kw_only=True):
    """How a request for one action would be decided, and by what."""

    action: str
    decision: Outcome
    rule: str
    trace: list[TraceEntry] = []


class SimulatePolicyRequest(Request, frozen=True, kw_only=True):
    """Members of SimulatePolicy, which asks whether somebody may do these actions, on a key or on something else.

    Without `principals` it is the caller. Several of them describe one process: `["user:backup", "unit:b.service"]`.
    `policy` is looked at in the place of the key's own. `values` gives condition keys beside those that follow from the
    other members.
    """

    actions: Annotated[list[ActionName], Meta(min_length=1, max_length=MAX_ACTIONS)]
    key_id: KeyIdentifier | None = None
    principals: Annotated[list[PrincipalText], Meta(max_length=16)] = []
    policy: PolicyText | None = None
    encryption_context: EncryptionContext = {}
    values: GivenValues = {}
    trace: bool = True


class SimulatePolicyResponse(Response, frozen=True, kw_only=True):
    """What SimulatePolicy answers: one result for each action; `principal` tells for whom."""

    principal: str
    resource: str
    results: list[SimulationResult]


class ExplainRefusalRequest(Request, frozen=True, kw_only=True):
    """Members of ExplainRefusal: the id of a request that was refused, or the first eight digits of it."""

    request_id: Annotated[str, Meta(min_length=8, max_length=64, pattern=r"^[0-9a-f]+\Z")]


class ExplainRefusalResponse(Response, frozen=True, kw_only=True):
    """What ExplainRefusal answers: who was refused what on which resource, and the decision as it was made."""

    request_id: str
    operation: str
    principal: str
    resource: str
    result: SimulationResult


class ReloadHostPolicyRequest(Request, frozen=True, kw_only=True):
    """ReloadHostPolicy has no members."""


class ReloadHostPolicyResponse(Response, frozen=True, kw_only=True):
    """What ReloadHostPolicy answers: the SHA-256 of the documents in force, and their files' names."""

    digest: str
    documents: list[str]


# 131,072 characters of policy are what AWS's model lets through, as in CreateKey.
_POLICY_FRAME_BYTES = 192 * 1024

GET_KEY_POLICY = Operation(
    name="GetKeyPolicy",
    summary="Get the policy of a key.",
    request=GetKeyPolicyRequest,
    response=GetKeyPolicyResponse,
    cost=Cost.STORE,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    reply_bytes=_POLICY_FRAME_BYTES,
    audit_fields=("key_id", "policy_name"),
)
PUT_KEY_POLICY = Operation(
    name="PutKeyPolicy",
    summary="Give a key another policy.",
    request=PutKeyPolicyRequest,
    response=Empty,
    cost=Cost.STORE,
    read_only=False,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    frame_bytes=_POLICY_FRAME_BYTES,
    audit_fields=("key_id", "policy_name", "policy", "bypass_policy_lockout_safety_check"),
)
LIST_KEY_POLICIES = Operation(
    name="ListKeyPolicies",
    summary="List the names of a key's policies, of which there is one.",
    request=ListKeyPoliciesRequest,
    response=ListKeyPoliciesResponse,
    cost=Cost.STORE,
    key="key_id",
    key_access=KeyAccess.ID_OR_ARN,
    audit_fields=("key_id", "limit", "marker"),
)
SIMULATE_POLICY = Operation(
    name="SimulatePolicy",
    summary="Tell how requests would be decided, and by which statement or grant.",
    request=SimulatePolicyRequest,
    response=SimulatePolicyResponse,
    cost=Cost.STORE,
    # Who may ask about whom is looked at by the handler: everybody about himself, administrators about anybody.
    key_access=KeyAccess.ANY,
    frame_bytes=_POLICY_FRAME_BYTES,
    reply_bytes=1024 * 1024,
    audit_fields=("actions", "key_id", "principals", "policy", "encryption_context", "values"),
)
EXPLAIN_REFUSAL = Operation(
    name="ExplainRefusal",
    summary="Tell why a request was refused: one's own, or as an administrator anybody's.",
    request=ExplainRefusalRequest,
    response=ExplainRefusalResponse,
    cost=Cost.STATUS,
    reply_bytes=256 * 1024,
    audit_fields=("request_id",),
)
RELOAD_HOST_POLICY = Operation(
    name="ReloadHostPolicy",
    summary="Read the host policy anew; if it is not valid, the one in force stays.",
    request=ReloadHostPolicyRequest,
    response=ReloadHostPolicyResponse,
    cost=Cost.STORE,
    read_only=False,
    works_sealed=True,
    audit_fields=(),
    audit_response=("digest", "documents"),
)

OPERATIONS = (
    GET_KEY_POLICY,
    PUT_KEY_POLICY,
    LIST_KEY_POLICIES,
    SIMULATE_POLICY,
    EXPLAIN_REFUSAL,
    RELOAD_HOST_POLICY,
)
