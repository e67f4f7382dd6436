"""The file, its lock, and what goes wrong with it: `kmsd.store.database` and `kmsd.store.migrations`."""

# ruff: noqa: ASYNC221, ASYNC240 - one thing after the other is what these tests are about
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kmsd.api.errors import IntegrityError
from kmsd.store.base import Insert, StoreError, StoreFormatError, StoreUnavailableError
from kmsd.store.migrations.stamp import SCHEMA_VERSION
from kmsd.store.sql import SqlStore
from tests.store.rows import KEY_IDS, MAC_KEY, edited, key_row, opened, unseal


async def refusal(path: Path) -> StoreError:
    """Why the store at `path` does not open."""
    with pytest.raises(StoreError) as refused:
        await SqlStore.open(path)
    assert str(path) in str(refused.value)
    return refused.value


async def test_the_files_are_their_owners_only(path: Path) -> None:
    """Whatever the umask and whatever a file's mode was, nobody else reads database or log."""
    before = os.umask(0)
    try:
        async with opened(path) as store:
            await store.commit("m", [])
            modes = {one.name: oct(one.stat().st_mode & 0o777) for one in path.parent.iterdir()}
    finally:
        os.umask(before)

    assert modes == {"store.sqlite": "0o600", "store.sqlite-wal": "0o600"}

    path.chmod(0o644)
    async with opened(path):
        assert path.stat().st_mode & 0o777 == 0o600


async def test_commits_are_durable_and_deletions_overwritten(store: SqlStore) -> None:
    """SQLite is set up as the design says."""

    def settings() -> list[object]:
        pragmas = ("journal_mode", "synchronous", "secure_delete", "locking_mode", "trusted_schema")
        connection = store._database._connection
        return [connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() for pragma in pragmas]

    assert store._executor.submit(settings).result() == ["wal", 2, 1, "exclusive", 0]


async def test_one_process_has_the_store(path: Path) -> None:
    """A second daemon is refused while the first runs, whether or not the first has done anything."""
    program = (
        "import asyncio, pathlib, sys; from kmsd.store.sql import SqlStore\n"
        "asyncio.run(SqlStore.open(pathlib.Path(sys.argv[1])))"
    )
    async with opened(path):
        second = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)

        assert second.returncode == 1
        assert f"StoreUnavailableError: store {path} is in use by another process" in second.stderr
        assert "in use" in str(await refusal(path))

    async with opened(path):
        pass


async def test_other_programs_are_kept_out(path: Path) -> None:
    """SQLite's own shell can neither read nor write while the daemon has the store, nor the other way round."""
    async with opened(path):
        with edited(path) as shell, pytest.raises(sqlite3.OperationalError, match="locked"):
            shell.execute("SELECT * FROM keys")
    with edited(path) as shell:
        shell.execute("BEGIN EXCLUSIVE")

        assert "in use" in str(await refusal(path))


async def test_a_relative_path_is_told_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages name the file so that it can be found."""
    monkeypatch.chdir(path.parent)
    path.write_bytes(b"x" * 1000)

    with pytest.raises(StoreFormatError, match=str(path)):
        await SqlStore.open(Path(path.name))


async def test_what_is_no_database_is_left_alone(path: Path) -> None:
    """Neither text nor the shortest file becomes a store."""
    for content in (b"x", b"x" * 511, b"these are my notes\n" * 500):
        path.write_bytes(content)

        assert isinstance(await refusal(path), StoreFormatError)
        assert path.read_bytes() == content


async def test_a_database_of_another_application_is_left_alone(path: Path) -> None:
    """Neither one with tables nor one that another application has only stamped is taken over."""
    for number, statement in enumerate(("CREATE TABLE notes (text)", "PRAGMA application_id = 7")):
        other = path.with_name(f"{number}.sqlite")
        with edited(other) as connection:
            connection.execute(statement)
        content = other.read_bytes()

        error = await refusal(other)

        assert isinstance(error, StoreFormatError)
        assert "another application" in str(error)
        assert other.read_bytes() == content


async def test_an_empty_file_becomes_a_store(path: Path) -> None:
    """A daemon that was killed while it made its store leaves an empty file, or a whole store."""
    path.touch()

    async with opened(path) as store:
        assert await store.settings() is None


async def test_a_newer_schema_is_refused(path: Path) -> None:
    """An older kmsd does not touch what it cannot know."""
    async with opened(path):
        pass
    with edited(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")

    error = await refusal(path)

    assert isinstance(error, StoreFormatError)
    assert "newer kmsd" in str(error)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE material",
        "DROP INDEX ix_keys_creator_uid",
        "CREATE TABLE more (x)",
        "CREATE VIEW more AS SELECT 1",
        "CREATE TRIGGER more AFTER INSERT ON keys BEGIN DELETE FROM aliases; END",
        "PRAGMA user_version = 0",
        "ALTER TABLE aliases RENAME COLUMN mac TO other",
        # Only SQLite itself may use names like its own, but it runs what it finds under them.
        """PRAGMA writable_schema = ON; INSERT INTO sqlite_master VALUES ('trigger', 'sqlite_more', 'keys', 0,
            'CREATE TRIGGER sqlite_more AFTER UPDATE ON keys BEGIN DELETE FROM aliases; END')""",
        """PRAGMA writable_schema = ON;
            UPDATE sqlite_master SET sql = replace(sql, 'name TEXT', 'name TEXT COLLATE NOCASE')""",
        "DROP INDEX ix_aliases_key_id; CREATE INDEX ix_aliases_key_id ON aliases (key_id) WHERE version > 1",
    ],
)
async def test_a_schema_that_somebody_changed_is_refused(path: Path, statement: str) -> None:
    """Tables that are missing or not as they were made, and triggers that are not ours, are damage."""
    async with opened(path):
        pass
    with edited(path) as connection:
        connection.executescript(statement)

    error = await refusal(path)

    assert isinstance(error, StoreFormatError)
    assert "damaged" in str(error)


async def filled(path: Path) -> None:
    """Make a store of some pages at `path`."""
    async with opened(path) as store:
        await store.commit("m", [Insert(key_row(one, policy="x" * 3000)) for one in KEY_IDS])


async def test_a_damaged_header_is_refused_and_left_alone(path: Path) -> None:
    """Whichever part of the first page is garbage, the file is named and stays as it is."""
    await filled(path)
    content = path.read_bytes()
    for part in (slice(0, 16), slice(16, 18), slice(100, 108), slice(108, 4096)):
        damaged = bytearray(content)
        damaged[part] = b"\xff" * len(damaged[part])
        path.write_bytes(damaged)

        error = await refusal(path)

        assert isinstance(error, StoreFormatError), part
        assert "damaged" in str(error)
        assert path.read_bytes() == damaged


async def test_a_schema_that_is_no_text_is_damage(path: Path) -> None:
    """What SQLite says of it is no text either, on which the driver stumbles."""
    await filled(path)
    content = path.read_bytes()
    for name in (b"sqlite_autoindex_keys_1", b"CREATE TABLE keys", b"key_id TEXT NOT NULL"):
        at = content.index(name)
        path.write_bytes(content[:at] + b"\xce" * len(name) + content[at + len(name) :])

        error = await refusal(path)

        assert isinstance(error, StoreFormatError)
        assert "damaged" in str(error)


async def test_a_truncated_file_is_reported(path: Path) -> None:
    """Pages that are not there are damage, wherever the file ends."""
    await filled(path)
    content = path.read_bytes()
    for size in (600, 4096, 4 * 4096, len(content) - 4096, len(content) - 1):
        path.write_bytes(content[:size])

        with pytest.raises((StoreFormatError, IntegrityError)):
            await everything_read(path)


async def test_damaged_pages_are_reported(path: Path) -> None:
    """Garbage in any page, of a table or of an index, is damage and not an empty answer."""
    await filled(path)
    content = path.read_bytes()
    for page in range(1, len(content) // 4096):
        damaged = bytearray(content)
        damaged[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
        path.write_bytes(damaged)

        with pytest.raises((StoreFormatError, IntegrityError)):
            await everything_read(path)


async def everything_read(path: Path, *, mac_key: bytes = MAC_KEY) -> None:
    """Open and verify everything; raises what is found."""
    async with opened(path, mac_key=None) as store:
        unseal(store, mac_key)
        report = await store.check_state()
        await store.verify_all()
        assert report.findings == ()


async def commit_and_be_killed(path: Path) -> None:
    """Leave a store as a daemon does that is killed: some commits in the file, the last ones in the log."""
    await filled(path)
    program = (
        "import asyncio, os, pathlib, sys\n"
        "from kmsd.store.base import Insert\n"
        "from tests.store.rows import alias_row, opened\n"
        "async def main():\n"
        "    async with opened(pathlib.Path(sys.argv[1])) as store:\n"
        "        for number in range(3):\n"
        "            await store.commit(f'n{number}', [Insert(alias_row(f'alias/{number}'))])\n"
        "        os._exit(9)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9


async def test_without_its_log_a_store_is_an_earlier_one(path: Path) -> None:
    """It opens as of the last commit that is in the file, and its sequence shows that commits are missing."""
    await commit_and_be_killed(path)
    log = path.with_name("store.sqlite-wal")
    commits = log.read_bytes()
    log.unlink()
    async with opened(path) as store:
        report = await store.check_state()

    assert (report.findings, report.sequence) == ((), 1)

    log.write_bytes(commits)
    async with opened(path) as store:
        report = await store.check_state()

    assert (report.findings, report.sequence) == ((), 4)


async def test_a_torn_log_is_read_as_far_as_it_is_whole(path: Path) -> None:
    """Commits behind the damage are gone, and the sequence shows it."""
    await commit_and_be_killed(path)
    log = path.with_name("store.sqlite-wal")
    commits = log.read_bytes()
    log.write_bytes(commits[: len(commits) - 5000])

    async with opened(path) as store:
        report = await store.check_state()

    assert report.findings == ()
    assert 1 <= report.sequence < 4


async def test_the_log_of_another_store_is_noticed(path: Path) -> None:
    """SQLite takes it for this store's; what comes out does not pass for a store that kmsd left."""
    await commit_and_be_killed(path)
    other = path.with_name("other.sqlite")
    async with opened(other, mac_key=bytes(32)) as store:
        await store.commit("other", [Insert(key_row(f"{number}", policy="y" * 3000)) for number in range(20)])
    path.with_name("store.sqlite-wal").rename(path.with_name("other.sqlite-wal"))

    before = {one.name: one.read_bytes() for one in path.parent.iterdir()}

    with pytest.raises((StoreFormatError, IntegrityError)):
        await everything_read(other, mac_key=bytes(32))

    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == before


@pytest.mark.parametrize("left", [None, b""])
async def test_a_log_without_its_store_is_kept(path: Path, left: bytes | None) -> None:
    """Where the file was lost or emptied, a new store would cost the commits that are in the log."""
    await commit_and_be_killed(path)
    content, log = path.read_bytes(), path.with_name("store.sqlite-wal")
    commits = log.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(left)

    error = await refusal(path)

    assert isinstance(error, StoreFormatError)
    assert "put the store back" in str(error)
    assert path.exists() is (left is not None)
    assert log.read_bytes() == commits
    path.write_bytes(content)
    async with opened(path) as store:
        assert store.sequence == 4


async def test_only_a_regular_file_is_opened(path: Path) -> None:
    """Directories, pipes, links and missing directories are named as what they are."""
    folder, pipe, link = (path.with_name(name) for name in ("folder", "pipe", "link"))
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(path)

    assert "Is a directory" in str(await refusal(folder))
    assert "not a regular file" in str(await refusal(pipe))
    assert "symbolic link" in str(await refusal(link))
    assert "No such file or directory" in str(await refusal(path.parent / "missing" / "store.sqlite"))


@contextlib.contextmanager
def nobody() -> Iterator[Path]:
    """The path of a store in a directory of root's, seen by a user who may not write there."""
    with tempfile.TemporaryDirectory(prefix="kmsd-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.seteuid(65534)
        try:
            yield folder / "store.sqlite"
        finally:
            os.seteuid(0)


@pytest.mark.root
async def test_a_read_only_directory_holds_no_store() -> None:
    """A store can be neither made there nor opened: its log would have to be."""
    with nobody() as path:
        assert "Permission denied" in str(await refusal(path))

        os.seteuid(0)
        async with opened(path):
            pass
        os.chown(path, 65534, 65534)
        os.seteuid(65534)

        assert isinstance(await refusal(path), StoreUnavailableError)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 384 KiB: an empty store and some rows."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=384k", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


async def commit_until_refused(store: SqlStore) -> tuple[int, StoreUnavailableError]:
    for number in range(1000):
        try:
            await store.commit(f"m{number}", [Insert(key_row(f"{number:04}", policy="x" * 2000))])
        except StoreUnavailableError as error:
            return number, error
    raise AssertionError("the disk never filled")


@pytest.mark.root
async def test_a_full_disk_is_named_and_survived(small_disk: Path) -> None:
    """The commit that does not fit did not happen, reading goes on, and with room again so does writing."""
    path = small_disk / "store.sqlite"
    async with opened(path) as store:
        number, error = await commit_until_refused(store)

        assert number > 3
        assert str(path) in str(error)
        assert "full" in str(error)
        assert "for tests" not in "".join(traceback.format_exception(error)), "a traceback shows what the row holds"
        assert await store.committed(["m0", f"m{number}"]) == {"m0"}
        assert await store.count_keys(1000) == number
        assert await store.key("0000") is not None

        subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
        await store.commit("more", [Insert(key_row(f"{number:04}"))])
    async with opened(path) as store:
        assert await store.count_keys(1000) == number + 1


async def test_a_file_that_may_not_grow_is_named_and_survived(path: Path) -> None:
    """The same under a limit of the process's own, which needs no file system to test with."""
    program = (
        "import asyncio, pathlib, resource, sys\n"
        "from tests.store.rows import opened\n"
        "from tests.store.test_database import commit_until_refused\n"
        "async def main():\n"
        "    async with opened(pathlib.Path(sys.argv[1])) as store:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "        number, error = await commit_until_refused(store)\n"
        "        assert await store.count_keys(1000) == number\n"
        "        print(number, error)\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    number, _, message = child.stdout.partition(" ")

    assert str(path) in message
    async with opened(path) as store:
        assert await store.count_keys(1000) == int(number) > 3


async def test_after_a_failed_sync_nothing_is_promised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel forgets what it could not write, so only a new start may go on; the commit did not happen."""
    async with opened(path) as store:
        await store.commit("m", [Insert(key_row())])
        execute = store._database._execute

        def fail(text: str) -> None:
            if text == "COMMIT":
                original = sqlite3.OperationalError("disk I/O error")
                original.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
                raise sa.exc.OperationalError(text, None, original)
            execute(text)

        with monkeypatch.context() as patched:
            patched.setattr(store._database, "_execute", fail)
            with pytest.raises(StoreUnavailableError, match="synced"):
                await store.commit("n", [Insert(key_row(KEY_IDS[1]))])
        for attempt in (store.key(KEY_IDS[0]), store.commit("o", []), store.committed(["n"])):
            with pytest.raises(StoreUnavailableError, match=r"store\.sqlite could not be synced"):
                await attempt

    async with opened(path) as store:
        assert await store.committed(["m", "n"]) == {"m"}
        assert await store.keys(after=None, limit=9) == [key_row()]
