"""`kmsd init --recovery shares`: no store is ever there whose shares nobody has."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.api.errors import RecoverySharesError
from kmsd.commands import recovery_choice, shares
from kmsd.commands.recovery_choice import RecoveryOptions, SharePlan, choose
from kmsd.commands.steps import SetupError, UsageError
from kmsd.material.recovery import RecoveryWrap, RecoveryWrapped
from kmsd.memory.arena import Arena
from kmsd.recovery.shares import read_shares, share_in_file, split
from kmsd.store.sql import SqlStore
from tests.support.killed_init import kill
from tests.support.private_host import PrivateHost

pytestmark = pytest.mark.root

_KMSD = str(Path(sys.executable).with_name("kmsd"))
_KMS = str(Path(sys.executable).with_name("kms"))
_STORE = "/var/lib/kmsd/store.sqlite"
_SHARES = "/var/lib/shares"
_SECONDS = 60
# Each takes two seconds. `make crash` has more, at every place.
_KILLS = int(os.environ.get("KMSD_CRASH_RUNS", "0"))


@pytest.fixture
def host(module_path: Path) -> PrivateHost:
    host = PrivateHost(module_path / f"host-{len(list(module_path.iterdir()))}")
    host.path(_SHARES).mkdir(mode=0o700)
    return host


def init(host: PrivateHost, *options: str) -> subprocess.CompletedProcess[str]:
    return host.run(_KMSD, "init", "--non-interactive", "--share-directory", _SHARES, "--recovery", "shares", *options)


def files(host: PrivateHost) -> dict[str, str]:
    """The words in each share's file."""
    return {path.name: share_in_file(path.read_text()) for path in sorted(host.path(_SHARES).iterdir())}


async def _open(folder: Path, words: list[str]) -> bool:
    store = await SqlStore.open(folder / "store.sqlite")
    rows = await store.domain_keys()
    await store.close()
    if not rows:
        return False
    arena = Arena(64 * 1024)
    for row in rows:
        record = RecoveryWrapped(row.domain_key_id, row.generation, row.recovery_wrapped)
        key = memoryview(read_shares("\n".join(words)).combine())
        RecoveryWrap(arena, os.urandom).unwrap_into(record, key, arena.lease(32).view)
    return True


def opens(host: PrivateHost, words: list[str], tmp_path: Path) -> bool:
    """Whether the host's store has a domain key; raises unless these shares open it then."""
    if not host.path(_STORE).exists():
        return False
    copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
    copy.mkdir()
    for path in host.path(_STORE).parent.glob("store.sqlite*"):
        shutil.copy(path, copy)
    return asyncio.run(_open(copy, words))


@contextlib.contextmanager
def served(host: PrivateHost) -> Iterator[None]:
    """A daemon that was started by hand."""
    errors = host.top / "serve.err"
    with errors.open("wb") as stream:
        process = subprocess.Popen(host.command(_KMSD, "serve"), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + _SECONDS
        while not host.path("/run/kmsd/kmsd.sock").exists():
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < deadline, errors.read_text()
            time.sleep(0.01)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(_SECONDS) == 0, errors.read_text()


def test_shares_in_files_open_a_host_that_has_lost_its_token(host: PrivateHost) -> None:
    """Two of three, each for root alone and explained; an old file decrypts, and another init changes nothing."""
    ran = init(host)
    assert ran.returncode == 0, ran.stderr
    names = [f"kmsd-share-{number}-of-3.txt" for number in (1, 2, 3)]
    assert list(files(host)) == names
    assert not [word for share in files(host).values() for word in share.split() if f" {word} {word}" in ran.stdout]
    modes = host.run("stat", "-c", "%U:%G %a", *(f"{_SHARES}/{name}" for name in names)).stdout.split("\n")
    assert modes == ["root:root 600"] * 3 + [""]
    text = host.path(f"{_SHARES}/{names[1]}").read_text()
    assert f"# Share 2 of 3 of the recovery key of kmsd on the host {os.uname().nodename}, made on 20" in text
    with served(host):
        steps = (
            "cd /var/lib",
            f"{_KMS} key create --alias alias/x",
            "echo kept > kept",
            f"{_KMS} encrypt -k alias/x kept",
        )
        made = host.run("sh", "-c", " && ".join(steps))
        assert made.returncode == 0, made.stderr
        assert "recovery:" in host.run(_KMS, "status").stdout
    host.path("/var/lib/kmsd/token").rename(host.path("/var/lib/kmsd/lost"))

    with served(host):
        unsealed = host.run(
            *(_KMS, "unseal"), *(word for name in names[1:] for word in ("--share-file", f"{_SHARES}/{name}"))
        )
        assert unsealed.stdout == "kmsd is unsealed\n", unsealed.stderr
        assert host.run(_KMS, "decrypt", "/var/lib/kept.kms", "-o", "-").stdout == "kept\n"

    host.path("/var/lib/kmsd/lost").rename(host.path("/var/lib/kmsd/token"))
    before = files(host)
    again = host.run(_KMSD, "init", "--non-interactive")
    assert (again.returncode, "made" in again.stdout.split()) == (0, False), again.stderr
    assert "made" not in init(host).stdout.split()
    assert files(host) == before


# Where it matters most; `make crash` looks everywhere.
PLACES = {
    "when all are drafted": "sqlite3.connect",
    "when the store is made": "os.link('/var/lib/shares/kmsd-share-1-of-3.txt.draft",
}
if _KILLS:
    PLACES |= {
        "while shares are drafted": "os.link('/var/lib/shares/.kmsd-share-2-of-3.txt.draft",
        "while they get their names": "os.remove('/var/lib/shares/kmsd-share-2-of-3.txt.draft",
    }


def killed_and_finished(host: PrivateHost, where: int | str, tmp_path: Path) -> None:
    kill(host, where, "--share-directory", _SHARES, "--recovery", "shares")
    there = [words for name, words in files(host).items() if not name.startswith(".")]
    opens(host, sorted(set(there)), tmp_path)  # whatever happened: a store that has keys is opened by what is there

    ran = init(host)

    assert ran.returncode == 0, ran.stderr
    assert list(files(host)) == [f"kmsd-share-{number}-of-3.txt" for number in (1, 2, 3)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        words = list(files(host).values())
        assert opens(host, [words[first], words[second]], tmp_path)


@pytest.fixture(scope="module")
def steps(module_path: Path) -> int:
    """How many things a whole run does."""
    host = PrivateHost(module_path / "whole")
    host.path(_SHARES).mkdir(mode=0o700)
    return kill(host, 0, "--share-directory", _SHARES, "--recovery", "shares")


@pytest.mark.parametrize("where", [*PLACES.values(), *range(_KILLS)], ids=[*PLACES, *map(str, range(_KILLS))])
def test_a_run_that_was_killed_leaves_no_store_without_shares(
    host: PrivateHost, where: int | str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What is there in the end opens the store, any two of the three, and nothing else is left."""
    if isinstance(where, int):
        where = 1 + where * (request.getfixturevalue("steps") - 1) // max(_KILLS - 1, 1)
    killed_and_finished(host, where, tmp_path)


def test_a_person_is_shown_each_share_and_nobody_else_is(host: PrivateHost, tmp_path: Path) -> None:
    """On the terminal, whatever becomes of standard output; the next one only when the last was written down."""
    command = host.command("sh", "-c", f"exec {_KMSD} init --recovery shares > /var/lib/said 2>&1")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)  # noqa: S606 - its own terminal
    shown = []
    with open(terminal, "r+b", buffering=0) as screen:  # noqa: PTH123 - a descriptor
        for number in (1, 2, 3):
            said = ""
            while not said.endswith("may look: "):
                said += screen.read(4096).decode()
            assert f"Share {number} of 3" in said
            assert "\x1b[3J" in said
            assert not host.path(_STORE).exists()
            shown.append(" ".join(re.findall(r"\d+\. ([a-z]+)", said)))
            screen.write(b"\n")
        rest = b""
        with contextlib.suppress(OSError):  # how a terminal ends whose programs are gone
            while more := screen.read(4096):
                rest += more

    said = host.path("/var/lib/said").read_text()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said
    assert rest.endswith(b"\x1b[3J")
    assert opens(host, shown[1:], tmp_path)
    assert not [share for share in shown if share in said or share.split()[5] + " " + share.split()[6] in said]


def test_shares_that_are_there_are_not_replaced(host: PrivateHost) -> None:
    """Nor is a store made whose shares would have no place."""
    there = host.path(f"{_SHARES}/kmsd-share-1-of-5.txt")
    there.write_text("somebody's")
    ran = init(host)
    assert ran.returncode == 1
    assert f"{_SHARES}/kmsd-share-1-of-5.txt is there, and is the share of something else" in ran.stderr
    assert there.read_text() == "somebody's"
    assert not host.path(_STORE).exists()
    there.unlink()

    host.path(_SHARES).chmod(0o777)
    assert "others than root can write in" in init(host).stderr
    host.path(_SHARES).rmdir()
    assert "is no directory: make it" in init(host).stderr
    assert not host.path(_STORE).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recovery", "shares"), "needs --share-directory here"),
        (("--recovery", "shares", "--share-directory", "/x", "--threshold", "1"), "with 2 to 8 shares, not with 1"),
        (("--recovery", "shares", "--share-directory", "/x", "--shares", "17"), "2 to 16, not 17"),
        (
            ("--recovery", "shares", "--share-directory", "/x", "--threshold", "4", "--shares", "3"),
            "where 4 shares are needed there are 4 to 16, not 3",
        ),
        (("--recovery", "none", "--shares", "3"), "belong to --recovery shares"),
        (("--share-directory", "/x"), "belong to --recovery shares"),
    ],
)
def test_a_plan_that_cannot_be_is_explained(options: tuple[str, ...], words: str) -> None:
    """Before anything is done."""
    ran = subprocess.run(
        [_KMSD, "init", "--non-interactive", *options], capture_output=True, text=True, check=False, timeout=_SECONDS
    )
    assert ran.returncode == 2
    assert words in ran.stderr


@pytest.mark.parametrize(
    ("answers", "plan"),
    [
        (["none"], None),
        (["shares", "", ""], SharePlan(2, 3, None)),
        (["shares", "5", "3"], SharePlan(3, 5, None)),
    ],
)
def test_what_was_not_said_is_asked(
    monkeypatch: pytest.MonkeyPatch, answers: list[str], plan: SharePlan | None
) -> None:
    """With what each choice means."""
    monkeypatch.setattr("builtins.input", lambda _question: answers.pop(0))
    assert choose(RecoveryOptions(None, threshold=None, shares=None, directory=None), interactive=True) == plan
    assert answers == []


@pytest.mark.parametrize("answers", [[""], ["some"], ["shares", "many"], ["shares", "3", "1"]])
def test_no_answer_is_no_choice(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    monkeypatch.setattr(recovery_choice, "_answer", lambda _question: answers.pop(0))
    with pytest.raises(UsageError):
        choose(RecoveryOptions(None, threshold=None, shares=None, directory=None), interactive=True)


def test_shares_that_nobody_wrote_down_are_not_relied_on() -> None:
    """A terminal that goes away is no Enter; what was shown is wiped from it."""
    screen = io.StringIO()
    with pytest.raises(SetupError, match="nothing depends on them"):
        shares._show(split(bytes(32), threshold=2, count=3), 2, "host", io.StringIO("\n"), screen)

    assert "Share 2 of 3" in screen.getvalue()
    assert "Share 3 of 3" not in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[3J")


def test_left_shares_of_a_store_that_is_gone_are_not_given_out(host: PrivateHost) -> None:
    """A run that finds drafts sees whether they open the store before it calls them its shares."""
    kill(host, PLACES["when the store is made"], "--share-directory", _SHARES, "--recovery", "shares")
    drafts = {path.name: path.read_bytes() for path in host.path(_SHARES).iterdir()}
    for left in host.path(_STORE).parent.glob("store.sqlite*"):
        left.unlink()
    host.path("/var/log/kmsd/audit.log").unlink()
    host.path(_SHARES).rename(host.path("/var/lib/away"))
    assert host.init().returncode == 0
    host.path("/var/lib/away").rename(host.path(_SHARES))

    ran = init(host)

    assert ran.returncode == 1
    assert RecoverySharesError.__name__ not in ran.stderr
    assert "do not open this store" in ran.stderr
    assert {path.name: path.read_bytes() for path in host.path(_SHARES).iterdir()} == drafts
