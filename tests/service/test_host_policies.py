"""Reading the host policy anew on somebody's request."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from unittest import mock

import pytest

from kmsd.access.host import HostPolicyError
from kmsd.api.errors import AccessDeniedError, AuditUnavailableError, MalformedPolicyDocumentError
from kmsd.api.policies import RELOAD_HOST_POLICY, ReloadHostPolicyRequest, ReloadHostPolicyResponse
from kmsd.api.symmetric import GENERATE_RANDOM, GenerateRandomRequest
from kmsd.identity.principals import NameServiceError
from kmsd.service.call import Session
from kmsd.service.host_policies import read_host_policy
from tests.support.embedded import ACCOUNT, ALICE, ROOT, Embedded

DENY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": {"Effect": "Deny", "Principal": "*", "Action": "kms:GenerateRandom", "Resource": "*"},
    }
)

FOR_CAROL = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Deny", "NotPrincipal": {"Unix": "user:carol"}, "Action": "kms:GenerateRandom", "Resource": "*"}
        ],
    }
)


class Minutes:
    """The time between two look-ups, which passes when the test says so."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        assert seconds == 60
        self._begun.set()
        await self._over.wait()
        self._over.clear()

    async def pass_one(self) -> None:
        """Let it pass, and wait until what is done then is done."""
        await self._begun.wait()
        self._begun.clear()
        self._over.set()
        await self._begun.wait()


@pytest.fixture
async def minutes(service: Embedded) -> AsyncIterator[Minutes]:
    made = Minutes()
    service.host_policies._sleep = made.sleep
    service.host_policies.start()
    yield made
    service.host_policies.stop()


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


async def test_names_are_looked_up_again_while_it_runs(service: Embedded, minutes: Minutes) -> None:
    """A name that leads elsewhere excepts nobody any more, until it leads back."""
    service.names.users["carol"] = ALICE.caller.uid
    write(service, FOR_CAROL)
    await reload(service)
    await draw(service)

    service.names.users["carol"] = 4711
    await minutes.pass_one()
    with pytest.raises(AccessDeniedError):
        await draw(service)
    service.names.users["carol"] = ALICE.caller.uid
    await minutes.pass_one()

    await draw(service)


async def test_names_stay_as_they_were_while_they_cannot_be_looked_up(
    service: Embedded, minutes: Minutes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once, until they could be looked up again."""
    service.names.users["carol"] = ALICE.caller.uid
    write(service, FOR_CAROL)
    await reload(service)
    away = mock.Mock(side_effect=NameServiceError("it is away"))

    with monkeypatch.context() as patch:
        patch.setattr(service.names, "uid_of", away)
        await minutes.pass_one()
        await minutes.pass_one()
    await draw(service)
    assert service.log.getvalue().count("host_policy_names_not_renewed") == 1
    await minutes.pass_one()
    monkeypatch.setattr(service.names, "uid_of", away)
    await minutes.pass_one()

    assert service.log.getvalue().count("host_policy_names_not_renewed") == 2


async def test_a_policy_whose_names_cannot_be_looked_up_is_not_taken(
    service: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a start nor a reload may take them for names that do not exist."""
    write(service, FOR_CAROL)
    monkeypatch.setattr(service.names, "uid_of", mock.Mock(side_effect=NameServiceError("it is away")))

    with pytest.raises(HostPolicyError, match="cannot be looked up: it is away"):
        await read_host_policy(service.directory / "policy.d", account=ACCOUNT, directory=service.known)
    with pytest.raises(MalformedPolicyDocumentError, match="cannot be looked up: it is away"):
        await reload(service)

    await draw(service)
