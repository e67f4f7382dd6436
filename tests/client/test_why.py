"""`kms why` says who may do what and why, and what would help: `kmsd_client.cli.why`."""

from __future__ import annotations

import json
import os
import pwd
from typing import Any

import pytest

from kmsd.api.administration import GetAuditRecordsResponse
from kmsd.api.errors import AccessDeniedError, KmsError, NotFoundError
from kmsd.api.policies import (
    ExplainRefusalResponse,
    Outcome,
    SimulatePolicyRequest,
    SimulatePolicyResponse,
    SimulationResult,
    TraceEntry,
)
from kmsd_client.cli.main import main
from tests.client.scripted import Answer, ScriptedDaemon

KEY = "arn:aws:kms:local-host-1:123456789012:key/00000000-0000-0000-0000-000000000001"
ID = "7f3a91c2" + "0" * 24
REFUSED = SimulationResult(
    action="kms:Decrypt",
    decision=Outcome.IMPLICIT_DENY,
    rule="no statement allows it",
    trace=[
        TraceEntry(
            origin="key policy", number=2, sid="Mine", effect="Allow", holds=False, reason="the principal is user:db"
        ),
        TraceEntry(origin="grant 12ab", effect="Allow", holds=False, reason="the encryption context has no 'app'"),
    ],
)
OWN_NAME = pwd.getpwuid(os.geteuid()).pw_name


class Explainer:
    """A daemon that answers each operation with what it is given; `asked` keeps the requests."""

    def __init__(self, daemon: ScriptedDaemon, **answers: Any) -> None:
        self._path = daemon.path
        self._answers = answers
        self.asked: list[Any] = []
        daemon.answer = self._answer

    def _answer(self, name: str, request: Any) -> Answer:
        self.asked.append(request)
        answer = self._answers[name]
        if isinstance(answer, KmsError):
            raise answer
        return answer, []

    def why(self, *words: str) -> int:
        return main(["--socket", str(self._path), "why", *words])


def simulated(result: SimulationResult = REFUSED) -> SimulatePolicyResponse:
    return SimulatePolicyResponse(principal="uid 33 (www-data)", resource=KEY, results=[result])


def test_a_refusal_is_an_answer(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """With what decided, all that was looked at, and what would help."""
    explainer = Explainer(daemon, SimulatePolicy=simulated())
    share = "kms key share alias/db --with user:www-data --decrypt-only"

    assert explainer.why("--as", "user:www-data", "-c", "app=web", "Decrypt", "alias/db") == 0
    assert capsys.readouterr().out.splitlines() == [
        "uid 33 (www-data) may not kms:Decrypt alias/db",
        "decided by: no statement allows it",
        '  key policy, statement 2 "Mine": Allow does not hold: the principal is user:db',
        "  grant 12ab: Allow does not hold: the encryption context has no 'app'",
        f"what would help: an Allow for kms:Decrypt that names user:www-data: {share}",
    ]
    assert explainer.asked == [
        SimulatePolicyRequest(
            actions=["kms:Decrypt"],
            key_id="alias/db",
            principals=["user:www-data"],
            encryption_context={"app": "web"},
        )
    ]


def test_what_is_allowed_needs_no_help(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """The action may be written as in a policy."""
    allowed = SimulationResult(action="kms:Decrypt", decision=Outcome.ALLOWED, rule="key policy statement 1")
    explainer = Explainer(daemon, SimulatePolicy=simulated(allowed))

    assert explainer.why("KMS:Decrypt", "alias/db") == 0
    assert capsys.readouterr().out == (
        "uid 33 (www-data) may kms:Decrypt alias/db\ndecided by: key policy statement 1\n"
    )
    assert explainer.asked[0].actions == ["KMS:Decrypt"]
    assert explainer.asked[0].principals == []


@pytest.mark.parametrize(
    ("action", "decision", "rule", "key", "helps"),
    [
        ("Encrypt", Outcome.IMPLICIT_DENY, "none", "alias/db", f"share alias/db --with user:{OWN_NAME} --encrypt-only"),
        ("DescribeKey", Outcome.IMPLICIT_DENY, "none", "alias/db", f"--to user:{OWN_NAME} --operation DescribeKey"),
        ("DisableKey", Outcome.IMPLICIT_DENY, "none", "alias/db", "kms policy edit alias/db"),
        ("CreateKey", Outcome.IMPLICIT_DENY, "none", None, "allow kms:CreateKey in the host policy"),
        ("Decrypt", Outcome.EXPLICIT_DENY, "key policy statement 3", "alias/db", "has to be changed: kms policy edit"),
        ("Decrypt", Outcome.EXPLICIT_DENY, "host policy a.json statement 1", "alias/db", "change the host policy"),
    ],
)
def test_what_would_help_depends_on_what_decided(
    daemon: ScriptedDaemon,
    capsys: pytest.CaptureFixture[str],
    action: str,
    decision: Outcome,
    rule: str,
    key: str | None,
    helps: str,
) -> None:
    """A grant where one can do it; never where something denies."""
    result = SimulationResult(action=f"kms:{action}", decision=decision, rule=rule)

    assert Explainer(daemon, SimulatePolicy=simulated(result)).why(action, *([key] if key else [])) == 0
    assert helps in capsys.readouterr().out.splitlines()[-1]


def test_a_refused_request_is_explained_by_its_id(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """As it was decided then; who it was, the daemon knows."""
    explanation = ExplainRefusalResponse(
        request_id=ID, operation="Decrypt", principal="uid 4000000000", resource=KEY, result=REFUSED
    )

    assert Explainer(daemon, ExplainRefusal=explanation).why("7f3a91c2") == 0
    lines = capsys.readouterr().out.splitlines()

    assert lines[0] == f"uid 4000000000 may not kms:Decrypt {KEY}"
    assert lines[-1].endswith(f"kms key share {KEY} --with uid:4000000000 --decrypt-only")


RECORDS = GetAuditRecordsResponse(
    records=[
        json.dumps(
            {
                "seq": seq,
                "eventTime": "2026-09-21T00:00:01.000Z",
                "eventType": "ApiCall",
                "eventName": name,
                "requestID": request_id,
                "userIdentity": {"uid": 33, "userName": "www-data"},
                "resources": [{"ARN": KEY}],
                "errorCode": "AccessDeniedException",
                "additionalEventData": {"decision": rule},
            }
        )
        for seq, name, request_id, rule in (
            (1, "Encrypt", "0" * 32, "not 7f3a91c2"),
            (2, "Decrypt", ID, "key policy statement 3"),
        )
    ]
)


def test_an_older_refusal_is_found_in_the_trail(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """By who may read it."""
    missing = NotFoundError("no such refusal")

    assert Explainer(daemon, ExplainRefusal=missing, GetAuditRecords=RECORDS).why("7f3a91c2") == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-09-21T00:00:01.000Z  #2  www-data  Decrypt  AccessDeniedException  00000000-0000-0000-0000-000000000001",
        "decided by: key policy statement 3",
    ]
    assert Explainer(daemon, ExplainRefusal=missing, GetAuditRecords=RECORDS).why("--json", "7f3a91c2") == 0
    assert json.loads(capsys.readouterr().out)["requestID"] == ID
    assert Explainer(daemon, ExplainRefusal=missing, GetAuditRecords=RECORDS).why("ffffffff") == 1
    assert "neither kmsd nor its audit trail knows" in capsys.readouterr().err


def test_who_may_not_read_the_trail_is_told_who_may(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """And not that reading it was refused, which was not asked for."""
    refused = AccessDeniedError("User: a (uid 1) is not authorized to perform: kms:GetAuditRecords on resource: *")

    assert Explainer(daemon, ExplainRefusal=NotFoundError("none"), GetAuditRecords=refused).why("7f3a91c2") == 1
    said = capsys.readouterr().err

    assert said.startswith("kms: error: none\n")
    assert "administrator or auditor" in said


def test_programs_get_the_answer_as_it_is(daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """With the trace."""
    assert Explainer(daemon, SimulatePolicy=simulated()).why("--json", "Decrypt", "alias/db") == 0
    answer = json.loads(capsys.readouterr().out)

    assert answer["Results"][0]["Decision"] == "implicitDeny"
    assert answer["Results"][0]["Trace"][0]["Sid"] == "Mine"


def test_a_request_id_goes_with_nothing_else(daemon: ScriptedDaemon) -> None:
    """Who it was and what it was about, it says itself."""
    assert Explainer(daemon).why("7f3a91c2", "alias/db") == 2
