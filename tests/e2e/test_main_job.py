"""The main job: a file is encrypted under a key that never leaves the daemon, and read again, by whoever may."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.dev_daemon import SCRIPTS

CONTENT = os.urandom(100_000)


def kmsd_dev(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `kmsd dev directory words...` beside it."""
    return subprocess.run(
        [SCRIPTS / "kmsd", "dev", directory, *words],
        cwd=directory.parent,
        env=os.environ | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def running(directory: Path) -> list[bytes]:
    """The command lines of processes that `kmsd dev directory` started, and its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return [line for line in found if os.fsencode(directory) in line.split(b"\0")]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def directory(module_path: Path, prepared: Path) -> Path:
    """A directory that a daemon has made and left."""
    return Path(shutil.copytree(prepared, module_path / "d"))


def test_a_file_is_encrypted_and_decrypted_and_again_after_a_restart(module_path: Path) -> None:
    """The commands that a person would type first, from nothing."""
    place = module_path / "first"
    file = module_path / "F"
    file.write_bytes(CONTENT)
    script = "kms key create --alias alias/demo && kms encrypt -k alias/demo F && rm F && kms decrypt F.kms"
    ran = kmsd_dev(place, "--", "sh", "-c", script)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("arn:aws:kms:")
    assert "error" not in ran.stderr
    assert file.read_bytes() == CONTENT

    file.unlink()
    again = kmsd_dev(place, "--", "kms", "decrypt", "F.kms")

    assert again.returncode == 0, again.stderr
    assert file.read_bytes() == CONTENT
    assert CONTENT not in (module_path / "F.kms").read_bytes()


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 7", 7), ("kill -TERM $$", 128 + signal.SIGTERM)],
)
def test_the_commands_exit_code_is_passed_on(directory: Path, command: str, code: int) -> None:
    """As a shell would say it, also when a signal ended the command."""
    assert kmsd_dev(directory, "--", "sh", "-c", command).returncode == code


def test_a_command_that_does_not_exist_is_said(directory: Path) -> None:
    """With the exit code that shells have for it."""
    ran = kmsd_dev(directory, "--", "no-such-command")

    assert ran.returncode == 127
    assert "kmsd: error: no-such-command: No such file or directory\n" in ran.stderr


def test_nothing_runs_on_when_the_command_has_ended(directory: Path) -> None:
    """Neither daemon nor socket."""
    ran = kmsd_dev(directory, "--", "sh", "-c", 'echo "$KMSD_SOCKET"; test -S "$KMSD_SOCKET"')

    assert ran.returncode == 0
    assert not Path(ran.stdout.strip()).exists()
    assert not running(directory)


def test_a_command_is_not_run_without_a_daemon(module_path: Path) -> None:
    """When it cannot start there is nothing to run the command beside."""
    ran = kmsd_dev(module_path / "a#b", "--", "touch", "ran")

    assert ran.returncode == 1
    assert "kmsd: error: SoftHSM cannot read the path" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (module_path / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["starting", "running"])
def test_no_daemon_outlives_the_one_who_started_it(directory: Path, number: signal.Signals, moment: str) -> None:
    """Whether it is interrupted, terminated or killed, while the daemon starts or beside the command."""
    mark = directory.with_name("mark")
    mark.unlink(missing_ok=True)
    command: list[str | Path] = [SCRIPTS / "kmsd", "dev", directory, "--", "sh", "-c", f"touch {mark}; exec sleep 60"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as ran:
        try:
            wait_until(mark.exists if moment == "running" else lambda: len(running(directory)) > 1)
            os.killpg(ran.pid, number)
            wait_until(lambda: not running(directory))
        finally:
            ran.kill()
        assert ran.stderr is not None
        assert b"Traceback" not in ran.stderr.read()

    assert ran.returncode == (-number if number == signal.SIGKILL else 128 + number)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_directory_of_ones_own_is_refused(directory: Path, short_path: Path, kind: str) -> None:
    """A link could lead anywhere; the directory holds the token and its PIN."""
    place = short_path / "place"
    if kind == "link":
        place.symlink_to(directory)
    else:
        place.write_text("")
    ran = kmsd_dev(place, "--", "true")

    assert ran.returncode == 1
    assert ran.stderr.startswith("kmsd: error: ")
    assert "Traceback" not in ran.stderr


def test_pipes_carry_files_in_both_directions(directory: Path) -> None:
    """Standard input and output instead of files."""
    script = "kms key create --alias alias/pipe >/dev/null && seq 100000 | kms encrypt -k alias/pipe - | kms decrypt -"
    ran = kmsd_dev(directory, "--", "sh", "-c", script)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "".join(f"{number}\n" for number in range(1, 100001))
