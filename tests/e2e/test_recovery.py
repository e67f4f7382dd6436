"""A host has lost its token: recovery shares bring its keys back (kmsd/recovery/RECOVERY.md)."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.hsm.softhsm import find_module
from kmsd.memory.mapping import MemoryKind
from kmsd.recovery.shares import split
from tests.support.dev_daemon import SCRIPTS
from tests.support.founded_host import found
from tests.support.host_daemon import HostDaemon
from tests.support.scanner import scan

KEY = os.urandom(32)
SHARES = split(KEY, threshold=2, count=3)


@pytest.fixture(scope="module")
def host(module_path: Path, prepared: Path) -> Iterator[tuple[HostDaemon, bytes]]:
    """A running daemon without its token, and a ciphertext from the time when it had one."""
    softhsm = module_path / "lib" / "libsofthsm2.so"
    softhsm.parent.mkdir()
    shutil.copy(find_module(), softhsm)
    directory = shutil.copytree(prepared, module_path / "host")
    daemon = HostDaemon(directory, softhsm, softhsm, environment={"SOFTHSM2_CONF": f"{directory}/token/softhsm2.conf"})
    try:
        found(daemon, KEY)
        daemon.start()
        with daemon.client() as client:
            assert client.status().recovery == "shares"
            key = client.create_key().key_metadata.arn
            blob = client.encrypt(key_id=key, plaintext=b"kept").ciphertext_blob
        daemon.stop()
        shutil.rmtree(directory / "token")
        softhsm.unlink()
        daemon.start()
        assert daemon.state() == "sealed"
        yield daemon, blob
        daemon.stop()
    finally:
        daemon.end()


@pytest.fixture
def daemon(host: tuple[HostDaemon, bytes]) -> HostDaemon:
    """The same, sealed."""
    with host[0].client() as client:
        client.seal()
    return host[0]


def share_files(folder: Path, *shares: str) -> list[str]:
    """The options that name files with these shares, each as `kmsd init` writes it."""
    options = []
    for number, share in enumerate(shares, 1):
        path = folder / f"share-{number}"
        path.write_text(f"# Share {number} of 3 of a recovery key.\n{share}\n")
        options += ["--share-file", str(path)]
    return options


def test_shares_bring_the_keys_back(daemon: HostDaemon, host: tuple[HostDaemon, bytes], tmp_path: Path) -> None:
    """Token and module are gone; two of three shares are enough, an old ciphertext decrypts, and it is on record."""
    ran = daemon.run(str(SCRIPTS / "kms"), "unseal", *share_files(tmp_path, SHARES[2].upper(), SHARES[0]), cwd=tmp_path)

    assert (ran.stdout, ran.stderr, ran.returncode) == (b"kmsd is unsealed\n", b"", 0)
    with daemon.client() as client:
        assert bytes(client.decrypt(ciphertext_blob=host[1]).plaintext) == b"kept"
        client.create_key()
    [*_, intent, outcome] = daemon.events("Unseal")
    assert [one["requestParameters"]["shares"] for one in (intent, outcome)] == [True, True]
    assert "errorCode" not in outcome


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((SHARES[0],), b"kms: error: 1 more share is needed\n"),
        ((SHARES[0], SHARES[0]), b"share 2 is the same as share 1: each counts once\n"),
        ((SHARES[0].replace(" ", " kmsd ", 1),), b"share 1 has more words; a share has 33\n"),
        (tuple(split(os.urandom(32), threshold=2, count=2)), b"these recovery shares are not of this store"),
    ],
    ids=["too few", "twice", "mistyped", "another host's"],
)
def test_other_shares_bring_nothing_back(
    daemon: HostDaemon, tmp_path: Path, shares: tuple[str, ...], words: bytes
) -> None:
    """It says why, and stays sealed."""
    ran = daemon.run(str(SCRIPTS / "kms"), "unseal", *share_files(tmp_path, *shares), cwd=tmp_path)

    assert ran.returncode == 1
    assert words in ran.stderr
    assert daemon.state() == "sealed"


def test_a_person_types_shares(daemon: HostDaemon) -> None:
    """One a line, unseen; a share that is mistyped is typed again, and as many are asked for as are needed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(SCRIPTS / "kms", ["kms", "unseal", "--share"], daemon.environment)  # noqa: S606 - its own terminal
    shown = b""
    with open(terminal, "r+b", buffering=0) as screen:  # noqa: PTH123 - a descriptor
        mistyped = SHARES[0].replace(" ", "x ", 1)
        asked = (b"Share 1: ", b"Share 1: ", b"Share 2, 1 more needed: ")
        for prompt, line in zip(asked, (mistyped, SHARES[0], SHARES[1]), strict=True):
            said = b""
            while prompt not in said:
                said += screen.read(1024)
            shown += said
            screen.write(line.encode() + b"\n")
        with contextlib.suppress(OSError):  # how a terminal ends whose programs are gone
            while more := screen.read(1024):
                shown += more

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert b"share 1: word 1 is in no share's list of words" in shown
    assert SHARES[0].encode() not in shown
    assert shown.endswith(b"kmsd is unsealed\r\n")
    assert daemon.state() == "unsealed"


def test_without_a_terminal_shares_come_in_files(daemon: HostDaemon, tmp_path: Path) -> None:
    """Never in the command line, and not down a pipe that nobody looks at."""
    ran = daemon.run(str(SCRIPTS / "kms"), "unseal", "--share", cwd=tmp_path, stdin=SHARES[0].encode())

    assert ran.returncode == 2
    assert b"name a file for each share with --share-file FILE" in ran.stderr


@pytest.mark.root
def test_no_share_and_no_recovery_key_stays_in_memory(daemon: HostDaemon, tmp_path: Path) -> None:
    """After an unsealing that failed and one that did not: in no process, and behind no descriptor."""
    with daemon.client() as client:
        if client.status().secret_memory != MemoryKind.HIDDEN:
            pytest.skip("this kernel has no memfd_secret(2); root can read what is only locked")
    other = split(os.urandom(32), threshold=2, count=2)
    for shares in (other, SHARES[:2]):
        daemon.run(str(SCRIPTS / "kms"), "unseal", *share_files(tmp_path, *shares), cwd=tmp_path)
    assert daemon.state() == "unsealed"
    # Three words in a row of a share stand nowhere else: one of a thousand million.
    secrets = {
        f"words {number} of share {index}": " ".join(share.split()[number : number + 3]).encode()
        for index, share in enumerate((*SHARES[:2], other[0]))
        for number in (6, 15, 24)
    }

    report = scan(daemon.processes(), {"recovery key": KEY, **secrets})

    assert report.findings == set()
    assert report.unreadable == {"/secretmem (deleted)"}
