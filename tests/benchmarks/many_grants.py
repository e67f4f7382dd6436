"""A key with very many grants: what Encrypt costs, permitted by the key's policy and by one of the grants.

`python -m tests.benchmarks.many_grants FOLDER COUNT GRANTEE KEY...` adds grants to keys in the store of a stopped
`kmsd dev FOLDER`, in transactions of many.
"""

import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from kmsd.api.grants import CREATE_GRANT, CreateGrantRequest, GrantConstraints, GrantOperation
from kmsd.api.keys import CREATE_KEY, CreateKeyRequest
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from kmsd.server.assembly import Service
from kmsd.store.base import Insert
from kmsd.store.rows import GrantRow
from kmsd_client import Client
from tests.benchmarks.daemon import Daemon, pinned
from tests.benchmarks.load import PLAINTEXT, WARM_UP
from tests.benchmarks.offline import with_service
from tests.benchmarks.report import Better, Row, median

# What 50,000 grants of a key may add to a request.
MORE_MICROSECONDS = 10

CONTEXT = {"app": "db", "tenant": "7"}
GRANTS_IN_A_COMMIT = 5000


def many_grants_rows(daemon: Daemon, folder: Path, *, count: int, requests: int, core: int) -> list[Row]:
    """Measure Encrypt under keys without grants, or with one, and under keys with `count`."""
    grantee = f"uid:{os.getuid()}"
    with Client(str(daemon.socket)) as client:
        by_policy = [client.call(CREATE_KEY, CreateKeyRequest()).key_metadata.arn for _ in range(2)]
        by_grant = [
            client.call(CREATE_KEY, CreateKeyRequest(policy=_managing_only(grantee))).key_metadata.arn for _ in range(2)
        ]
        for key in by_grant:
            # As the caller's other grants are: found by the encryption context.
            request = CreateGrantRequest(
                key_id=key,
                grantee_principal=grantee,
                operations=[GrantOperation.ENCRYPT],
                constraints=GrantConstraints(encryption_context_equals=CONTEXT),
            )
            client.call(CREATE_GRANT, request)
    daemon.close()
    program = [sys.executable, "-m", "tests.benchmarks.many_grants"]
    subprocess.run([*program, folder, str(count), grantee, by_policy[1], by_grant[1]], check=True)
    daemon.restart()
    daemon.pin({core})
    rows = []
    for how, (few, many), without in (("the key policy", by_policy, "no grants"), ("a grant", by_grant, "one grant")):
        bare, burdened = _interleaved(daemon, few, many, requests=requests, core=core)
        what = f"Encrypt, depth 1, one core, p50, permitted by {how}"
        rows += [
            Row(f"{what}, {without}", bare, "us"),
            Row(f"{what}, {count:,} more", burdened, "us", bare + MORE_MICROSECONDS, Better.LOWER),
            Row(f"  the difference, x{burdened / bare:.3f}", burdened - bare, "us"),
        ]
    return rows


def _managing_only(principal: str) -> str:
    actions = ["kms:CreateGrant", "kms:PutKeyPolicy"]
    statement = {"Effect": "Allow", "Principal": {"Unix": principal}, "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _interleaved(daemon: Daemon, *keys: str, requests: int, core: int) -> list[float]:
    """Return the median microseconds of Encrypt under each of some keys, which take turns."""
    seconds: dict[str, list[float]] = {key: [] for key in keys}
    with pinned({core}), Client(str(daemon.socket)) as client:
        asked = {
            key: EncryptRequest(key_id=key, plaintext=memoryview(PLAINTEXT), encryption_context=CONTEXT) for key in keys
        }
        for turn, key in itertools.product(range(-WARM_UP, requests), keys):
            began = time.perf_counter()
            client.call(ENCRYPT, asked[key])
            if turn >= 0:
                seconds[key].append(time.perf_counter() - began)
    return [median(seconds[key]) * 1e6 for key in keys]


async def add_grants(service: Service, count: int, grantee: str, keys: list[str]) -> None:
    """Add grants to each of `keys`, half of them for `grantee` under a context each, half for as many others."""
    for arn in keys:
        rows = (_row(arn.rpartition("/")[2], number, grantee) for number in range(count))
        while some := list(itertools.islice(rows, GRANTS_IN_A_COMMIT)):
            await service._store.commit(secrets.token_hex(16), [Insert(row) for row in some])


def _row(key_id: str, number: int, grantee: str) -> GrantRow:
    own = number % 2 == 0
    return GrantRow(
        grant_id=secrets.token_hex(32),
        key_id=key_id,
        grantee=grantee if own else f"uid:{1_000_000 + number}",
        retiring="",
        name="",
        creation_ms=int(time.time() * 1000),
        grantee_text=grantee if own else f"uid:{1_000_000 + number}",
        retiring_text="",
        issuer=grantee,
        operations=[GrantOperation.DECRYPT, GrantOperation.ENCRYPT],
        context_equals={"app": "db", "tenant": f"other-{number}"} if own else None,
        version=1,
    )


def main() -> None:
    """Add the grants."""
    folder, count, grantee, *keys = sys.argv[1:]
    with_service(Path(folder), lambda service: add_grants(service, int(count), grantee, keys))


if __name__ == "__main__":
    main()
