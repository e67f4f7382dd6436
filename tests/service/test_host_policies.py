"""Reading the host policy anew on somebody's request."""

from __future__ import annotations

import hashlib
import json

import pytest

from kmsd.access.host import HostPolicyError
from kmsd.api.errors import AccessDeniedError, AuditUnavailableError, MalformedPolicyDocumentError
from kmsd.api.policies import RELOAD_HOST_POLICY, ReloadHostPolicyRequest, ReloadHostPolicyResponse
from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest
from kmsd.service.call import Session
from tests.support.embedded import ALICE, ROOT, Embedded

DENY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": {"Effect": "Deny", "Principal": "*", "Action": "kms:GenerateRandom", "Resource": "*"},
    }
)


def write(service: Embedded, text: str) -> None:
    folder = service.directory / "policy.d"
    folder.mkdir(exist_ok=True)
    (folder / "50-test.json").write_text(text)


async def reload(service: Embedded, session: Session = ROOT) -> ReloadHostPolicyResponse:
    return await service.ask(session, RELOAD_HOST_POLICY, ReloadHostPolicyRequest())


async def draw(service: Embedded) -> None:
    await service.ask(ALICE, GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=1))


async def test_what_is_read_decides_from_then_on(service: Embedded) -> None:
    """It is answered and recorded which documents these are."""
    write(service, DENY)
    await draw(service)

    answer = await reload(service)

    with pytest.raises(AccessDeniedError, match="explicit deny in a host policy"):
        await draw(service)
    assert answer.documents == ["00-default.json", "50-test.json"]
    assert len(answer.digest) == hashlib.sha256().digest_size * 2
    intent, outcome = [line for line in service.lines() if line["eventName"] == "ReloadHostPolicy"]
    assert (intent["eventType"], outcome["eventType"]) == ("ApiCallIntent", "ApiCallOutcome")
    assert outcome["responseElements"] == {"digest": answer.digest, "documents": answer.documents}


async def test_a_document_that_is_not_valid_leaves_the_policy_in_force(service: Embedded) -> None:
    """The error names file, line and column; until it is valid it is known what is the matter."""
    write(service, DENY)
    await reload(service)
    write(service, DENY.replace("Deny", "Denied"))

    with pytest.raises(MalformedPolicyDocumentError, match=r"host policy 50-test\.json: line 1 .*in force stays"):
        await reload(service)

    with pytest.raises(AccessDeniedError):
        await draw(service)
    assert "50-test.json" in str(service.host_policies.fault)
    write(service, DENY.replace("Deny", "Allow"))
    await reload(service)
    assert service.host_policies.fault is None
    await draw(service)


async def test_only_administrators_reload(service: Embedded) -> None:
    """The host policy's own word, also while the daemon is sealed."""
    with pytest.raises(AccessDeniedError):
        await reload(service, ALICE)
    await service.gate.close(0)
    service.seal.seal()

    await reload(service)


async def test_what_nobody_asked_for_is_recorded_by_the_service(service: Embedded) -> None:
    """And not in force when it cannot be."""
    write(service, DENY)
    service.trail.refuses = lambda _: True
    with pytest.raises(AuditUnavailableError):
        await service.host_policies.reload()
    assert service.host_policies.fault is not None
    service.trail.refuses = None
    await draw(service)

    digest = (await service.host_policies.reload()).digest

    assert service.newest()["additionalEventData"]["hostPolicy"] == digest
    write(service, "{")
    with pytest.raises(HostPolicyError, match=r"50-test\.json"):
        await service.host_policies.reload()
