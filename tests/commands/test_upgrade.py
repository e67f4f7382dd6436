"""`kmsd upgrade`, and what starts before and after it."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kmsd.commands.main import main
from kmsd.store.migrations.stamp import SCHEMA_VERSION
from kmsd_client import Client
from tests.support.dev_daemon import SCRIPTS, DevDaemon

STORES = Path(__file__).parent.parent / "vectors" / "stores"
# The unprivileged user that every Linux has.
NOBODY = 65534
# The schema from which on the stores have them, and a backup beside.
_FIRST_WITH_GRANTS = 3


def restored(schema: int, directory: Path) -> None:
    """Put what a `kmsd dev` of a released schema left into `directory`."""
    shutil.copytree(STORES / str(schema), directory)
    directory.chmod(0o700)
    for one in directory.rglob("*"):
        one.chmod(0o700 if one.is_dir() else 0o600)


@pytest.fixture
def daemon(short_path: Path) -> Iterator[DevDaemon]:
    daemon = DevDaemon(short_path / "dev")
    yield daemon
    daemon.end()


# Whoever made its keys is the only one who may use them, and that was root.
@pytest.mark.root
@pytest.mark.parametrize("schema", range(1, SCHEMA_VERSION))
def test_a_store_of_every_released_schema_goes_on(
    daemon: DevDaemon, schema: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the upgrade the daemon says what to do; after it, what was encrypted then is decrypted."""
    restored(schema, daemon.directory)
    made = msgspec.json.decode((daemon.directory / "made.json").read_bytes())

    daemon.launch()
    assert daemon.process is not None
    assert daemon.process.wait(60) == 1
    assert f"its schema is {schema}" in daemon.said()
    assert "run `kmsd upgrade`" in daemon.said()

    assert main(["upgrade", "--dev", str(daemon.directory)]) == 0
    said = capsys.readouterr().out
    assert f"from schema {schema} to {SCHEMA_VERSION}" in said
    assert f"{daemon.directory}/store.sqlite.schema-{schema}" in said

    for _ in range(2):  # the first start adopts the rows, the second checks them
        daemon.start()
        with daemon.client() as client:
            check_what_was_encrypted(client, made)
            assert client.describe_key(key_id=made["alias"]).key_metadata.arn == made["keys"][0]
            if schema >= _FIRST_WITH_GRANTS:
                check_what_came_with_grants(client, made)
        daemon.stop()


def check_what_was_encrypted(client: Client, made: dict[str, Any]) -> None:
    for message in made["messages"]:
        decrypted = client.decrypt(
            ciphertext_blob=base64.b64decode(message["ciphertext_blob"]),
            encryption_context=message["encryption_context"],
        )
        assert bytes(decrypted.plaintext) == base64.b64decode(message["plaintext"])
        assert decrypted.key_id == message["key"]


def check_what_came_with_grants(client: Client, made: dict[str, Any]) -> None:
    """Tags, a grant and a credential are as they were made."""
    key = made["keys"][0]
    assert {tag.tag_key: tag.tag_value for tag in client.list_resource_tags(key_id=key).tags} == made["tags"]
    assert [grant.grant_id for grant in client.list_grants(key_id=key).grants] == [made["grant"]]
    [credential] = client.list_credentials().credentials
    assert [credential.unit, credential.name] == made["credential"]


@pytest.mark.root
@pytest.mark.parametrize("schema", range(_FIRST_WITH_GRANTS, SCHEMA_VERSION))
def test_a_backup_of_every_released_schema_is_restored(
    daemon: DevDaemon, schema: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an upgrade: what is restored has the present schema."""
    restored(schema, daemon.directory)
    made = msgspec.json.decode((daemon.directory / "made.json").read_bytes())
    assert main(["upgrade", "--dev", str(daemon.directory)]) == 0
    daemon.start()  # which writes the settings that SoftHSM finds its token by
    daemon.stop()
    (daemon.directory / "store.sqlite").unlink()

    assert main(["restore", "--dev", str(daemon.directory), str(daemon.directory / made["backup"])]) == 0
    assert main(["upgrade", "--dev", str(daemon.directory)]) == 0
    assert f"has schema {SCHEMA_VERSION} already" in capsys.readouterr().out

    daemon.start()
    with daemon.client() as client:
        check_what_was_encrypted(client, made)
        check_what_came_with_grants(client, made)
    daemon.stop()


def test_where_there_is_nothing_to_do_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A host without a store, as right after the installation, is no failure; what is no store is one."""
    assert main(["upgrade", "--dev", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"There is no store {tmp_path}/store.sqlite: nothing to upgrade.\n"

    (tmp_path / "store.sqlite").write_bytes(b"notes" * 1000)
    assert main(["upgrade", "--dev", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"kmsd: error: store {tmp_path}/store.sqlite is no store")


@pytest.mark.root
def test_what_it_makes_for_a_host_belongs_to_the_daemons_user(short_path: Path) -> None:
    """Started by root, it becomes the user that the settings name before it reads anything."""
    short_path.chmod(0o755)
    state = short_path / "state"
    state.mkdir()
    shutil.copy(STORES / "1" / "store.sqlite", state)
    os.chown(state, NOBODY, NOBODY)
    os.chown(state / "store.sqlite", NOBODY, NOBODY)
    settings = short_path / "kmsd.toml"
    settings.write_text(f'user = "nobody"\n[paths]\nstate = "{state}"\n')

    done = subprocess.run(
        [SCRIPTS / "kmsd", "upgrade", "--config", settings], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert {one.name: one.stat().st_uid for one in state.iterdir()} == {
        "store.sqlite": NOBODY,
        "store.sqlite.schema-1": NOBODY,
    }
