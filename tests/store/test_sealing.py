"""Records that somebody edited: `kmsd.store.sealing`, seen through the store."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.api.errors import IntegrityError
from kmsd.store.base import Insert, Replace
from kmsd.store.kinds import kind_of
from kmsd.store.rows import Row
from kmsd.store.sealing import Sealer
from kmsd.store.sql import SqlStore
from tests.store.rows import (
    KEY_IDS,
    MAC_KEY,
    ROWS,
    alias_row,
    domain_key_row,
    edited,
    hide_from_index,
    key_row,
    material_row,
    opened,
    secret_row,
    settings_row,
)

ONE, TWO = KEY_IDS[:2]
Read = Callable[[SqlStore], Awaitable[object]]


def read_key(store: SqlStore) -> Awaitable[object]:
    return store.key(ONE)


def read_keys(store: SqlStore) -> Awaitable[object]:
    return store.keys(after=None, limit=9)


def read_material(store: SqlStore) -> Awaitable[object]:
    return store.material(ONE, 1)


def read_alias(store: SqlStore) -> Awaitable[object]:
    return store.alias("alias/a")


def read_aliases_of_two(store: SqlStore) -> Awaitable[object]:
    return store.aliases(key_id=TWO, after=None, limit=9)


def read_domain_keys(store: SqlStore) -> Awaitable[object]:
    return store.domain_keys()


def read_secret(store: SqlStore) -> Awaitable[object]:
    return store.secret("row-mac")


def read_settings(store: SqlStore) -> Awaitable[object]:
    return store.settings()


def read_mutations(store: SqlStore) -> Awaitable[object]:
    return store.committed(["m", "planted"])


@dataclass(frozen=True)
class Edit:
    """What somebody does to the file, what is read then, and the record that has to be reported."""

    what: str
    sql: str
    read: Read
    table: str
    primary_key: str


EDITS = [
    Edit("content", "UPDATE keys SET content = content || x'00' WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("empty content", "UPDATE keys SET content = x'' WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("mac", "UPDATE keys SET mac = zeroblob(32) WHERE key_id = '{ONE}'", read_keys, "keys", ONE),
    Edit("short mac", "UPDATE keys SET mac = substr(mac, 1, 31) WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("no mac", "UPDATE keys SET mac = x'' WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("version", "UPDATE keys SET version = 7 WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("negative version", "UPDATE keys SET version = -1 WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("lookup column", "UPDATE keys SET creator_uid = 0 WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("alias's key", "UPDATE aliases SET key_id = '{TWO}'", read_alias, "aliases", "alias/a"),
    Edit("alias's key, listed", "UPDATE aliases SET key_id = '{TWO}'", read_aliases_of_two, "aliases", "alias/a"),
    Edit(
        "renamed alias",
        "DELETE FROM aliases WHERE name = 'alias/a'; UPDATE aliases SET name = 'alias/a'",
        read_alias,
        "aliases",
        "alias/a",
    ),
    Edit(
        "row of another key",
        "UPDATE keys SET (content, mac) = (SELECT content, mac FROM keys WHERE key_id != '{ONE}') "
        "WHERE key_id = '{ONE}'",
        read_key,
        "keys",
        ONE,
    ),
    Edit(
        "swapped rows",
        "UPDATE keys SET (content, mac) = (SELECT content, mac FROM keys AS k WHERE k.key_id != keys.key_id)",
        read_keys,
        "keys",
        ONE,
    ),
    Edit(
        "swapped keys",
        "UPDATE keys SET key_id = 'x' WHERE key_id = '{ONE}'; UPDATE keys SET key_id = '{ONE}' WHERE key_id = '{TWO}'",
        read_key,
        "keys",
        ONE,
    ),
    Edit(
        "older material",
        "DELETE FROM material WHERE number = 1; UPDATE material SET number = 1",
        read_material,
        "material",
        f"{ONE}/1",
    ),
    Edit(
        "row of another table",
        "DELETE FROM settings; INSERT INTO settings SELECT 'settings', version, content, mac FROM secrets",
        read_settings,
        "settings",
        "settings",
    ),
    Edit("domain key", "UPDATE domain_keys SET content = zeroblob(9)", read_domain_keys, "domain_keys", "domain"),
    Edit("secret", "UPDATE secrets SET mac = randomblob(32)", read_secret, "secrets", "row-mac"),
    Edit(
        "planted mutation",
        "INSERT INTO mutations SELECT 9, 'planted', version, content, mac FROM mutations",
        read_mutations,
        "mutations",
        "planted",
    ),
    # SQLite keeps values of any type in any column.
    Edit("number for content", "UPDATE keys SET content = 1 << 60 WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("text for content", "UPDATE keys SET content = 'text' WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("text for mac", "UPDATE keys SET mac = 'text' WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("text for version", "UPDATE keys SET version = 'one' WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("fraction for version", "UPDATE keys SET version = 1.5 WHERE key_id = '{ONE}'", read_key, "keys", ONE),
    Edit("blob for uid", "UPDATE keys SET creator_uid = x'00' WHERE key_id = '{ONE}'", read_key, "keys", ONE),
]


async def fill(path: Path) -> None:
    async with opened(path) as store:
        await store.commit(
            "m",
            [
                Insert(key_row(ONE)),
                Insert(key_row(TWO)),
                Insert(material_row(number=1)),
                Insert(material_row(number=2)),
                Insert(alias_row("alias/a")),
                Insert(alias_row("alias/b")),
                Insert(domain_key_row()),
                Insert(secret_row()),
                Insert(settings_row()),
            ],
        )


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.what)
async def test_an_edited_record_is_refused_and_named(path: Path, edit: Edit) -> None:
    """Whatever was edited, moved or exchanged: it is reported by table and primary key, and not used."""
    await fill(path)
    with edited(path) as connection:
        connection.executescript(edit.sql.format(ONE=ONE, TWO=TWO))
        assert connection.total_changes > 0

    async with opened(path) as store:
        with pytest.raises(IntegrityError, match=rf"\b{edit.table} '{re.escape(edit.primary_key)}'"):
            await edit.read(store)


async def test_an_earlier_record_cannot_pass_for_the_present_version(path: Path) -> None:
    """The content of version 1 is refused beside the number of version 2."""
    await fill(path)
    with edited(path) as connection:
        old = connection.execute("SELECT content, mac FROM keys WHERE key_id = ?", [ONE]).fetchone()
    async with opened(path) as store:
        await store.commit("n", [Replace(key_row(ONE, key_state="Disabled", version=2))])
    with edited(path) as connection:
        connection.execute("UPDATE keys SET content = ?, mac = ? WHERE key_id = ?", [*old, ONE])

    async with opened(path) as store:
        with pytest.raises(IntegrityError, match=ONE):
            await store.key(ONE)


async def test_an_index_cannot_lead_elsewhere(path: Path) -> None:
    """A whole and authentic row is refused when another was asked for."""
    await fill(path)
    hide_from_index(path)

    async with opened(path) as store:
        with pytest.raises(IntegrityError, match=r"alias/[aA]"):
            await store.alias("alias/A")


async def test_text_that_is_none_is_refused_and_not_quoted(path: Path) -> None:
    """A column that is no UTF-8 is one more edit; the driver's own error would show what it holds."""
    await fill(path)
    with edited(path) as connection:
        connection.execute("UPDATE keys SET content = CAST(content || x'ff' AS TEXT) WHERE key_id = ?", [ONE])
        connection.execute("UPDATE keys SET key_id = CAST(x'ff' AS TEXT) WHERE key_id = ?", [TWO])

    async with opened(path) as store:
        with pytest.raises(IntegrityError, match=ONE) as refused:
            await store.key(ONE)
        assert "for tests" not in str(refused.value)
        with pytest.raises(IntegrityError, match="keys '\ufffd'"):
            await store.keys(after=KEY_IDS[3], limit=9)


async def test_an_early_record_must_still_be_a_row(path: Path) -> None:
    """Content that is read before it can be authenticated is decoded by its type, and its text is never shown."""
    await fill(path)
    with edited(path) as connection:
        connection.execute("UPDATE settings SET content = ?", [msgspec.msgpack.encode({"version": "canary"})])

    async with opened(path, mac_key=None) as store:
        with pytest.raises(IntegrityError, match="settings 'settings'") as refused:
            await store.settings()

    assert "canary" not in str(refused.value)
    assert refused.value.__suppress_context__


async def test_the_mac_is_what_the_format_says(path: Path) -> None:
    """HMAC-SHA-256 over length-prefixed fields, computed here by another implementation."""
    await fill(path)
    with edited(path) as connection:
        content, mac = connection.execute("SELECT content, mac FROM material WHERE number = 2").fetchone()
    fields = [b"\x01", b"material", ONE.encode(), b"2", (1).to_bytes(8, "big"), content]
    expected = hmac.new(MAC_KEY, b"".join(len(field).to_bytes(4, "big") + field for field in fields), hashlib.sha256)

    assert mac == expected.digest()
    assert msgspec.msgpack.decode(content) == msgspec.to_builtins(material_row(number=2), builtin_types=(bytes,))


@given(ROWS, ROWS, st.booleans())
def test_different_rows_have_different_macs(one: Row, other: Row, same_key: bool) -> None:
    """The MAC tells any two rows apart, and keys too."""
    sealer, second = Sealer(), Sealer()
    sealer.unseal(memoryview(bytearray(MAC_KEY)))
    second.unseal(memoryview(bytearray(MAC_KEY if same_key else bytes(32))))
    is_same = same_key and type(one) is type(other) and one == other

    assert (sealer.record(one, kind_of(one)).mac == second.record(other, kind_of(other)).mac) is is_same
