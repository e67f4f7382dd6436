"""No key can be read out of kmsd's processes, not even by root (DESIGN 7).

The keys looked for are the real ones: the test unwraps them from a copy of the store with the daemon's own token.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import TokenPinIncorrectError
from kmsd.api.shapes import DataKeySpec
from kmsd.envelope.header import derive_message_key, parse_header
from kmsd.hsm.pkcs11 import JOB_ENTRY, FilePin, Pkcs11Root, run_job
from kmsd.hsm.root import WrappedDomainKey
from kmsd.hsm.softhsm import PIN_NAME, make_token
from kmsd.material.ciphertext import BlobCipher
from kmsd.material.derivation import Label, derive_into
from kmsd.material.hierarchy import Hierarchy, Place
from kmsd.memory.arena import Arena
from kmsd.memory.mapping import MemoryKind
from kmsd.processes.zygote import Zygote
from kmsd.store.sql import SqlStore
from kmsd_client import Client
from kmsd_client.files import decrypt_file, encrypt_file
from kmsd_client.unsealing import unseal
from tests.support.dev_daemon import DevDaemon
from tests.support.scanner import Finding, scan

pytestmark = pytest.mark.root

ROUNDS = 200  # of five requests each
CONTEXT = {"purpose": "canary"}
MISTYPED = os.urandom(16).hex().encode()


@pytest.fixture(scope="module")
def worked(dev: DevDaemon, module_path: Path) -> str:
    """The id of a key that a thousand requests and a few files were served with; FILE.kms is one of them."""
    with dev.client() as client:
        if client.status().secret_memory != MemoryKind.HIDDEN:
            pytest.skip("this kernel has no memfd_secret(2); root can read what is only locked")
        key = client.create_key().key_metadata
        for number in range(ROUNDS):
            _make_requests(client, key.arn, number)
        file = module_path / "FILE"
        file.write_bytes(os.urandom(3_000_000))
        for number in range(3):
            encrypt_file(client, file, module_path / "FILE.kms", key_id=key.arn, encryption_context=CONTEXT, force=True)
            decrypt_file(client, module_path / "FILE.kms", module_path / f"plain-{number}")
        # As an administrator does who brings the PIN over the socket, after a slip of the finger.
        client.seal()
        with pytest.raises(TokenPinIncorrectError):
            unseal(client, MISTYPED)
        unseal(client, (dev.directory / "token" / PIN_NAME).read_bytes())
        _make_requests(client, key.arn, ROUNDS)
        return key.key_id


def _make_requests(client: Client, key: str, number: int) -> None:
    context = {"number": str(number)}
    blob = client.encrypt(key_id=key, plaintext=os.urandom(100), encryption_context=context).ciphertext_blob
    client.decrypt(ciphertext_blob=blob, encryption_context=context)
    client.re_encrypt(ciphertext_blob=blob, source_encryption_context=context, destination_key_id=key)
    client.generate_data_key(key_id=key, key_spec=DataKeySpec.AES_256)
    client.generate_random(number_of_bytes=1024)


async def unwrapped(directory: Path, key_id: str, message: bytes, zygote: Zygote) -> dict[str, bytes]:
    """Return every key there is in `directory`, a copy of the daemon's, and those of an encrypted file."""
    arena = Arena(1024 * 1024)
    root = Pkcs11Root(
        zygote,
        await make_token(zygote, directory / "token", label="kmsd-dev"),
        FilePin(directory / "token" / PIN_NAME),
        deadline_seconds=30.0,
    )
    store = await SqlStore.open(directory / "store.sqlite")
    try:
        hierarchy = Hierarchy(arena, root, os.urandom)
        [row] = await store.domain_keys()
        await hierarchy.unseal([WrappedDomainKey(row.domain_key_id, row.generation, row.wrapped)])
        secret = await store.secret("row-mac")
        assert secret is not None
        mac_key = hierarchy.unwrap(Place("secrets", "row-mac", 0, "HMAC_256"), row.domain_key_id, secret.wrapped)
        set_key = arena.lease(32)
        derive_into(mac_key.view, Label.STORE_SET, b"", set_key.view)
        store.unseal(mac_key.view, set_key.view)
        stored = await store.material(key_id, 1)
        assert stored is not None
        place = Place("material", key_id, 1, "SYMMETRIC_DEFAULT")
        material = hierarchy.unwrap(place, row.domain_key_id, stored.wrapped)
        header = parse_header(message).header
        data_key, message_key = bytearray(32), bytearray(32)
        blob = header.encrypted_data_keys[0].ciphertext
        BlobCipher(arena, os.urandom).decrypt_into(material.view, blob, CONTEXT, memoryview(data_key))
        derive_message_key(memoryview(data_key), header.message_id, memoryview(message_key))
        return {
            "domain key": bytes(hierarchy._domain_key(row.domain_key_id)),
            "row-MAC key": bytes(mac_key.view),
            "set key": bytes(set_key.view),
            "key material": bytes(material.view),
            "data key of a file": bytes(data_key),
            "message key of a file": bytes(message_key),
            "PIN": (directory / "token" / PIN_NAME).read_bytes(),
            "mistyped PIN": MISTYPED,
        }
    finally:
        await store.close()


@pytest.fixture(scope="module")
def secrets(dev: DevDaemon, worked: str, module_path: Path) -> dict[str, bytes]:
    """All keys of the running daemon."""
    copy = module_path / "copy"
    shutil.copytree(dev.directory, copy, ignore=shutil.ignore_patterns("*.sock"))

    async def look() -> dict[str, bytes]:
        zygote = Zygote.start({JOB_ENTRY: run_job})
        try:
            return await unwrapped(copy, worked, (module_path / "FILE.kms").read_bytes(), zygote)
        finally:
            await zygote.close()

    return asyncio.run(look())


def test_no_key_is_found_in_any_process(dev: DevDaemon, secrets: dict[str, bytes]) -> None:
    """After a thousand requests, six files and an unsealing: in no mapping and behind no descriptor of any process."""
    pids = dev.processes()
    report = scan(pids, secrets)

    assert len(pids) >= 3, "daemon, zygote and a spare worker"
    assert report.findings == set()
    assert report.unreadable == {"/secretmem (deleted)"}
    assert report.read_bytes > len(pids) * 10_000_000
    assert report.descriptors > len(pids)


def test_the_daemon_works_with_the_keys_that_were_looked_for(
    dev: DevDaemon, worked: str, secrets: dict[str, bytes]
) -> None:
    """The key material is the daemon's indeed: it opens what the daemon encrypts."""
    with dev.client() as client:
        blob = client.encrypt(key_id=worked, plaintext=b"secret text").ciphertext_blob
    opened = bytearray(11)
    BlobCipher(Arena(1024 * 1024), os.urandom).decrypt_into(
        memoryview(secrets["key material"]), blob, {}, memoryview(opened)
    )

    assert opened == b"secret text"


def test_a_canary_in_the_daemons_ordinary_memory_is_found(dev: DevDaemon, client: Client) -> None:
    """By the same scan: the daemon keeps a key's description as any program would."""
    canary = os.urandom(16).hex()
    key = client.create_key(description=canary).key_metadata.key_id
    client.encrypt(key_id=key, plaintext=b"loads its record")
    report = scan(dev.processes(), {"canary": canary.encode()})

    assert (dev.pid, "canary") in {(finding.pid, finding.name) for finding in report.findings}


@pytest.fixture
def exposed() -> Iterator[tuple[int, dict[str, bytes]]]:
    """A process that is careless with three canaries: on the heap, in a descriptor never mapped, across two pages."""
    code = """
import mmap, os, sys
heap, behind, across = (bytes.fromhex(word) for word in sys.stdin.readline().split())
fd = os.memfd_create("canary")
os.write(fd, behind)
page = mmap.mmap(-1, 4 * mmap.PAGESIZE)
page[2 * mmap.PAGESIZE - 10 : 2 * mmap.PAGESIZE - 10 + len(across)] = across
print("ready", flush=True)
sys.stdin.read()
"""
    canaries = {name: os.urandom(32) for name in ("heap", "behind", "across")}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(" ".join(canary.hex() for canary in canaries.values()).encode() + b"\n")
        assert process.stdout.readline() == b"ready\n"
        yield process.pid, canaries


def test_the_scan_finds_what_is_there(exposed: tuple[int, dict[str, bytes]]) -> None:
    """In mappings, behind descriptors, and across the pages that it reads one by one."""
    pid, canaries = exposed
    found = scan([pid], canaries | {"absent": os.urandom(32)}).findings

    assert {finding.name for finding in found} == set(canaries)
    assert any(finding.name == "behind" and "memfd:canary" in finding.place for finding in found)
    assert all(isinstance(finding, Finding) for finding in found)
