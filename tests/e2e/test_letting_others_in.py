"""From a refusal to what it takes to lift it, as two people at a shell go through it."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Whoever runs `kms` as another user may not be able to read where it is installed, so it is all loaded before.
import kmsd_client.cli.decrypt
import kmsd_client.cli.grants
import kmsd_client.cli.why
from kmsd_client.cli.main import main
from tests.support.dev_daemon import DevDaemon
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user

pytestmark = pytest.mark.root

# A uid and gid that passwd and group do not have.
STRANGER = 54321
LOADED = (kmsd_client.cli.decrypt, kmsd_client.cli.grants, kmsd_client.cli.why)


@pytest.fixture(scope="module")
def shared(module_path: Path, prepared: Path) -> Iterator[DevDaemon]:
    """A daemon that others may connect to."""
    daemon = DevDaemon(shutil.copytree(prepared, module_path / "shared"), shared=True)
    try:
        daemon.start()
        yield daemon
        daemon.stop()
    finally:
        daemon.end()


def kms(daemon: DevDaemon, *words: str) -> str:
    """What `kms` says on standard output and standard error."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        main(["--socket", str(daemon.socket), *words])
    return said.getvalue()


def theirs(daemon: DevDaemon, *words: str) -> str:
    """The same by another user."""
    return as_user(DAEMON_UID, DAEMON_GID, lambda: kms(daemon, *words))


def test_who_is_refused_learns_why_and_what_would_help_and_that_does(shared: DevDaemon, short_path: Path) -> None:
    """Each command as the one before it says."""
    short_path.chmod(0o777)
    letter, opened = short_path / "letter", short_path / "opened"
    letter.write_text("meet at noon")
    arn = kms(shared, "key", "create", "--alias", "alias/theirs").strip()
    kms(shared, "encrypt", "-k", "alias/theirs", str(letter))
    decrypt = ("decrypt", "-k", "alias/theirs", "-o", str(opened), f"{letter}.kms")

    refused = theirs(shared, *decrypt)
    assert refused.splitlines()[0] == f"kms: error: uid {DAEMON_UID} may not kms:Decrypt alias/theirs"
    found = re.search(r"kms: hint: kms (why [0-9a-f]{8}), or ask an administrator", refused)
    assert found is not None

    why, administrators_why = theirs(shared, *found[1].split()), kms(shared, *found[1].split())
    assert why.splitlines()[0] == f"uid {DAEMON_UID} (daemon) may not kms:Decrypt {arn}"
    assert administrators_why.splitlines()[0] == why.splitlines()[0]
    # Whose key it is, only its policy tells, which is not everybody's business.
    assert "root" not in why
    assert "user:root" in administrators_why
    helps = re.search(r"what would help: .* names user:daemon: kms (key share .*)", why)
    assert helps is not None

    assert theirs(shared, *shlex.split(helps[1])).startswith(f"kms: error: uid {DAEMON_UID} may not kms:CreateGrant")
    assert "user:daemon may now decrypt with" in kms(shared, *shlex.split(helps[1]))
    assert theirs(shared, *decrypt) == ""
    assert opened.read_text() == "meet at noon"
    assert f"uid {DAEMON_UID} may not kms:GenerateDataKey alias/theirs" in theirs(
        shared, "encrypt", "-k", "alias/theirs", "-o", str(short_path / "theirs.kms"), str(letter)
    )

    kms(shared, "key", "unshare", "alias/theirs", "--with", "user:daemon")
    assert f"uid {DAEMON_UID} may not kms:Decrypt alias/theirs" in theirs(shared, *decrypt, "--force")


def test_nobody_learns_of_another_ones_refusals(shared: DevDaemon) -> None:
    """Neither by the request's id nor by asking as somebody else."""
    kms(shared, "key", "create", "--alias", "alias/mine")
    refused = as_user(STRANGER, STRANGER, lambda: kms(shared, "key", "describe", "alias/mine"))
    found = re.search("kms why ([0-9a-f]{8})", refused)
    assert found is not None

    assert theirs(shared, "why", found[1]).startswith("kms: error: no refusal of yours")
    assert kms(shared, "why", found[1]).startswith(f"uid {STRANGER} may not kms:DescribeKey")
    assert "only administrators may ask about others" in theirs(shared, "why", "--as", "uid:0", "Decrypt", "alias/mine")
