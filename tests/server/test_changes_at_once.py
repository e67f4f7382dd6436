"""A change that was answered decides every request that comes after it, on every connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kmsd.api.grants import CREATE_GRANT, REVOKE_GRANT, CreateGrantRequest, GrantOperation, RevokeGrantRequest
from kmsd.api.keys import DISABLE_KEY, EnableKeyRequest
from kmsd.api.policies import PUT_KEY_POLICY, PutKeyPolicyRequest
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from tests.support.connected import ConnectedPeer
from tests.support.embedded import ALICE, BOB, Embedded, Gate

PIPELINED = 24


def document(*statements: dict[str, Any]) -> str:
    written = [{"Effect": "Allow", "Resource": "*", **one} for one in statements]
    return json.dumps({"Version": "2012-10-17", "Statement": written})


ALICE_ALONE = document({"Principal": {"Unix": "uid:1000"}, "Action": "kms:*"})
BOB_TOO = document(
    {"Principal": {"Unix": "uid:1000"}, "Action": "kms:*"}, {"Principal": {"Unix": "uid:1001"}, "Action": "kms:Encrypt"}
)


async def revoked_grant(service: Embedded) -> tuple[str, Callable[[ConnectedPeer], Awaitable[None]], str]:
    arn = await service.make_key(policy=ALICE_ALONE)
    request = CreateGrantRequest(key_id=arn, grantee_principal="user:bob", operations=[GrantOperation.ENCRYPT])
    made = await service.ask(ALICE, CREATE_GRANT, request)
    revoke = RevokeGrantRequest(key_id=arn, grant_id=made.grant_id)
    return arn, lambda peer: peer.ask(REVOKE_GRANT, revoke), "AccessDeniedException"


async def edited_policy(service: Embedded) -> tuple[str, Callable[[ConnectedPeer], Awaitable[None]], str]:
    arn = await service.make_key(policy=BOB_TOO)
    put = PutKeyPolicyRequest(key_id=arn, policy=ALICE_ALONE)
    return arn, lambda peer: peer.ask(PUT_KEY_POLICY, put), "AccessDeniedException"


async def disabled_key(service: Embedded) -> tuple[str, Callable[[ConnectedPeer], Awaitable[None]], str]:
    arn = await service.make_key(policy=BOB_TOO)
    return arn, lambda peer: peer.ask(DISABLE_KEY, EnableKeyRequest(key_id=arn)), "DisabledException"


of_each_change = pytest.mark.parametrize("prepare", [revoked_grant, edited_policy, disabled_key])


@of_each_change
@pytest.mark.parametrize("slow", [None, "key", "count_grants", "grants_read"])
async def test_a_change_decides_the_next_request_on_every_connection(
    service: Embedded, prepare: Any, slow: str | None
) -> None:
    """Also of those who have many under way, and while the key or its grants are being read."""
    arn, change, code = await prepare(service)
    owner = ConnectedPeer(service, session=ALICE)
    peers = [ConnectedPeer(service, session=BOB) for _ in range(2)]
    request = EncryptRequest(key_id=arn, plaintext=memoryview(b"x"))
    for peer in peers:
        await peer.ask(ENCRYPT, request)
        [first] = await peer.answers(1)
        assert first.error is None
    gate = Gate()
    if slow is not None:
        service.records.forget(arn.rpartition("/")[2])
        service.store.gates[slow] = gate
    for peer in peers:
        await peer.send(b"".join(peer.frame(ENCRYPT, request) for _ in range(PIPELINED)))
    if slow is not None:
        await asyncio.sleep(0.02)
        del service.store.gates[slow]

    await change(owner)
    [changed] = await owner.answers(1)
    assert changed.error is None
    for peer in peers:
        await peer.send(peer.frame(ENCRYPT, request))
    await asyncio.sleep(0.02)
    gate.opened.set()

    for peer in peers:
        answers = {answer.id: answer for answer in await peer.answers(PIPELINED + 1)}
        last = answers[PIPELINED + 2].error
        assert last is not None
        assert last.code == code
    for peer in (owner, *peers):
        peer.hang_up()
        await peer.closed()
    # The trail has no permission behind the change, whenever the request came.
    lines = service.lines()
    changes = {"RevokeGrant", "PutKeyPolicy", "DisableKey"}
    done = [place for place, line in enumerate(lines) if line["eventName"] in changes][-1]
    behind = [line for line in lines[done + 1 :] if line["eventName"] == "Encrypt"]
    assert behind
    assert all("errorCode" in line for line in behind)
