"""What was acknowledged survives kill -9 at any moment (DESIGN 8 and 9).

Each run starts the daemon on the same directory, checks everything that earlier runs were told, then lets several
clients work and kills the daemon: sometimes while it still starts, mostly while it serves. `make crash` makes 100 runs.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kmsd.api.errors import ConnectionLostError
from kmsd.audit.verify import read_lines, verify
from kmsd_client import Client
from kmsd_client.files import decrypt_file, encrypt_file
from tests.support.dev_daemon import DevDaemon

RUNS = int(os.environ.get("KMSD_CRASH_RUNS", "10"))
# One run in this many is killed before it has ended.
KILLED_WHILE_STARTING = 5
CLIENTS = 3
# So that the last runs do not take longer than the first, a run checks this many of the earlier ones' keys, too.
OLDER_CHECKED = 20


@dataclass
class Acknowledged:
    """What the daemon has said it did: keys by ARN, aliases and the keys they name, ciphertexts by their context."""

    keys: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    ciphertexts: dict[str, bytes] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def add(self, other: Acknowledged) -> None:
        self.keys += other.keys
        self.aliases |= other.aliases
        self.ciphertexts |= other.ciphertexts
        self.files += other.files


class Worker(threading.Thread):
    """A client that asks for one change after the other until the daemon is gone, and notes what it was told."""

    def __init__(self, daemon: DevDaemon, name: str, folder: Path | None) -> None:
        super().__init__(name=name)
        self._daemon = daemon
        self._folder = folder  # where it encrypts files as well
        self.told = Acknowledged()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self._daemon.client() as client:
                for number in range(1_000_000):
                    self._change(client, f"{self.name}-{number}")
        except ConnectionLostError:
            return
        except BaseException as error:  # noqa: BLE001 - for the test's own thread to raise
            self.failure = error

    def _change(self, client: Client, name: str) -> None:
        key = client.create_key(description=name).key_metadata
        self.told.keys.append(key.arn)
        client.create_alias(alias_name=f"alias/{name}", target_key_id=key.key_id)
        self.told.aliases[f"alias/{name}"] = key.key_id
        blob = client.encrypt(key_id=f"alias/{name}", plaintext=name.encode(), encryption_context={"name": name})
        self.told.ciphertexts[name] = blob.ciphertext_blob
        if self._folder is None:
            return
        source, target = self._folder / name, self._folder / f"{name}.kms"
        source.write_bytes(name.encode() * 1000)
        encrypt_file(client, source, target, key_id=key.arn, encryption_context={"file": name}, sync=False)
        self.told.files.append(target)


@pytest.fixture
def daemon(short_path: Path, prepared: Path) -> Iterator[DevDaemon]:
    daemon = DevDaemon(shutil.copytree(prepared, short_path / "d"), settings="[limits]\nkeys_per_uid = 100000\n")
    yield daemon
    daemon.end()


def work_until_killed(daemon: DevDaemon, run: int, seconds: float, folder: Path) -> Acknowledged:
    """Let clients work for so long, kill the daemon, and return what it had acknowledged."""
    # One uid may have one file under way on a small machine, so only the first client has files.
    workers = [Worker(daemon, f"r{run}c{number}", None if number else folder) for number in range(CLIENTS)]
    for worker in workers:
        worker.start()
    time.sleep(seconds)
    daemon.kill()
    told = Acknowledged()
    for worker in workers:
        worker.join()
        assert worker.failure is None, worker.failure
        told.add(worker.told)
    return told


def check_keys(client: Client, told: Acknowledged) -> None:
    """Every key works, has its alias, and opens what was encrypted under it before."""
    for arn in told.keys:
        blob = client.encrypt(key_id=arn, plaintext=b"works").ciphertext_blob
        assert bytes(client.decrypt(ciphertext_blob=blob).plaintext) == b"works"
    for alias, key_id in told.aliases.items():
        assert client.describe_key(key_id=alias).key_metadata.key_id == key_id
    for name, blob in told.ciphertexts.items():
        decrypted = client.decrypt(ciphertext_blob=blob, encryption_context={"name": name})
        assert bytes(decrypted.plaintext) == name.encode()
    for file in told.files:
        target = file.with_suffix(".plain")
        decrypt_file(client, file, target, sync=False)
        assert target.read_bytes() == file.with_suffix("").read_bytes()
        target.unlink()


def check_trail(daemon: DevDaemon, client: Client, told: Acknowledged) -> None:
    """The chain is whole, nothing is open, each acknowledged operation has its line, and what is settled is true."""
    report = verify(read_lines(io.BytesIO(daemon.audit_log.read_bytes())))
    assert report.open_intents == ()
    records = daemon.records()
    done = [record for record in records if record["eventType"] != "ApiCallIntent" and "errorCode" not in record]
    created = {_resource(record) for record in done if record["eventName"] == "CreateKey"}
    named = {_parameter(record, "aliasName") for record in done if record["eventName"] == "CreateAlias"}
    encrypted = {_context(record, "name") for record in done if record["eventName"] == "Encrypt"}
    files = {_context(record, "file") for record in done if record["eventType"] == "FileEnd"}
    assert set(told.keys) <= created
    assert set(told.aliases) <= named
    assert set(told.ciphertexts) <= encrypted
    assert {file.stem for file in told.files} <= files
    check_settled(records, client)


def check_uses(daemon: DevDaemon, client: Client, told: Acknowledged) -> None:
    """No key looks less used than the trail tells, so that nobody destroys it for that."""
    happened: dict[str, Counter[str]] = defaultdict(Counter)
    for record in daemon.records():
        if record["eventType"] in {"ApiCall", "FileEnd"} and "errorCode" not in record:
            happened[_resource(record)][record["eventName"]] += 1
    for arn in told.keys[:OLDER_CHECKED]:
        used = client.get_key_last_usage(key_id=arn)
        assert used.key_last_usage is not None
        for operation in ("Encrypt", "Decrypt", "EncryptFile", "DecryptFile"):
            assert used.uses.get(operation, 0) >= happened[arn][operation]


def check_settled(records: list[dict[str, Any]], client: Client) -> None:
    """What a start wrote of an interrupted alias is how it is: it exists exactly if the trail says so."""
    intents = {
        record["requestID"]: _parameter(record, "aliasName")
        for record in records
        if record["eventType"] == "ApiCallIntent" and record["eventName"] == "CreateAlias"
    }
    settled = [one for one in records if (one.get("additionalEventData") or {}).get("settledAtStart")]
    existing = {alias.alias_name for alias in all_aliases(client)}
    for record in settled:
        if record["eventName"] == "CreateAlias":
            assert (intents[record["requestID"]] in existing) == ("errorCode" not in record)


def all_aliases(client: Client) -> Iterator[Any]:
    marker = None
    while True:
        page = client.list_aliases(limit=100, marker=marker)
        yield from page.aliases
        marker = page.next_marker
        if marker is None:
            return


def _resource(record: dict[str, Any]) -> str:
    resources = record.get("resources") or [{}]
    return str(resources[0].get("ARN"))


def _parameter(record: dict[str, Any], name: str) -> str:
    return str((record.get("requestParameters") or {}).get(name))


def _context(record: dict[str, Any], name: str) -> str:
    return str(((record.get("requestParameters") or {}).get("encryptionContext") or {}).get(name))


@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_kills(daemon: DevDaemon, short_path: Path) -> None:
    """Keys, aliases, ciphertexts, files, audit records and uses, however often and whenever the daemon is killed."""
    rng = random.Random(RUNS)
    everything, last = Acknowledged(), Acknowledged()
    for run in range(RUNS):
        if run % KILLED_WHILE_STARTING == 1:
            daemon.launch()
            time.sleep(rng.uniform(0.05, 0.7))
            daemon.kill()
        daemon.start()
        with daemon.client() as client:
            check_keys(client, last)
            check_keys(client, some_of(everything, rng))
            check_trail(daemon, client, last)
            check_uses(daemon, client, last)
        last = work_until_killed(daemon, run, rng.uniform(0.0, 0.25), short_path)
        everything.add(last)
    daemon.start()
    with daemon.client() as client:
        check_keys(client, everything)
        check_trail(daemon, client, everything)
    daemon.stop()

    assert len(everything.keys) > RUNS
    assert len(everything.files) > 0


def some_of(told: Acknowledged, rng: random.Random) -> Acknowledged:
    """Return some of what was acknowledged."""
    keys = rng.sample(told.keys, min(OLDER_CHECKED, len(told.keys)))
    aliases = rng.sample(sorted(told.aliases.items()), min(OLDER_CHECKED, len(told.aliases)))
    return Acknowledged(keys, dict(aliases))
