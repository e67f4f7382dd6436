"""`kms audit` off-line: what it says, and its exit codes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from kmsd.audit.public_key import to_pem
from kmsd_client.cli.main import main
from tests.support.written_trail import NAME, Key, Writer, signed_trail

KEY = Key()
HEX = KEY.public.hex()


@pytest.fixture
def trail() -> Writer:
    return signed_trail(KEY)


def write(folder: Path, files: Mapping[str, Sequence[bytes]]) -> list[str]:
    for name, lines in files.items():
        (folder / name).write_bytes(b"".join(lines))
    return sorted(str(path) for path in folder.iterdir())


def anchors_in(folder: Path, trail: Writer) -> str:
    path = folder / "anchors"
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in trail.anchors))
    return str(path)


def run(*words: str) -> int:
    return main(["audit", *words])


def test_verify_tells_what_is_signed_and_what_is_not_yet(
    trail: Writer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over all files of a folder, whatever else lies there."""
    trail.files[f"{NAME}.torn-17"] = [b"half a li"]
    anchors = anchors_in(tmp_path_factory.mktemp("elsewhere"), trail)

    assert run("verify", *write(tmp_path, trail.files), "--public-key", HEX, "--anchors", anchors) == 0
    out = capsys.readouterr().out.splitlines()

    assert out == [
        "39 records, 1 to 39: the chain is whole",
        f"head: {trail.head.digest}",
        "files: 3",
        "signed: to record 36 (2026-09-21T00:00:36.125Z)",
        "checkpoints: 4 verified",
        "not signed yet: 3 records behind the last checkpoint",
        "anchors: 4 agree",
        f"note: {tmp_path}/{NAME}.torn-17: passed over: it is no part of the chain",
    ]


def test_verify_without_a_key_says_that_nothing_is_checked(
    trail: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The chain is, the signatures are not; anchors then cannot be."""
    files = write(tmp_path, trail.files)

    assert run("verify", *files) == 0
    assert "signed: not checked: 4 checkpoints, and no --public-key to verify them" in capsys.readouterr().out
    assert run("verify", *files, "--anchors", files[0]) == 2
    assert "--public-key" in capsys.readouterr().err


@pytest.mark.parametrize("lines", [b"", b"no anchor\n", b'{"event":"started"}\n'], ids=["empty", "text", "others"])
def test_a_file_without_anchors_vouches_for_nothing(
    trail: Writer,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    lines: bytes,
) -> None:
    """As when a search of the journal found none: that is no success."""
    files = write(tmp_path, trail.files)
    (anchors := tmp_path_factory.mktemp("elsewhere") / "anchors").write_bytes(lines)

    assert run("verify", *files, "--public-key", HEX, "--anchors", str(anchors)) == 1
    told = capsys.readouterr()
    assert f"{anchors}: there is no anchor in it" in told.err
    assert "whole" not in told.out


def test_verify_takes_a_part_only_when_told_so(
    trail: Writer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anchors of what is elsewhere are said to be unchecked."""
    del trail.files["audit.log.000000000001-000000000012"]
    files = write(tmp_path, trail.files)
    anchors = anchors_in(tmp_path_factory.mktemp("elsewhere"), trail)

    assert run("verify", *files, "--public-key", HEX) == 1
    assert "--part" in capsys.readouterr().err
    assert run("verify", *files, "--part", "--public-key", HEX, "--anchors", anchors) == 0
    out = capsys.readouterr().out
    assert "27 records, 13 to 39" in out
    assert "cannot be checked: it is for record 12, and the files begin with 13" in out


def test_verify_names_the_place_for_people_and_programs(
    trail: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 1."""
    trail.files[NAME][3] = trail.files[NAME][3].replace(b"Encrypt", b"Decrypt")

    assert run("verify", *write(tmp_path, trail.files), "--json") == 1
    told = capsys.readouterr()

    assert f"kms: error: the audit trail was changed: {tmp_path}/audit.log, line 4, seq 28: edited: " in told.err
    found = json.loads(told.out)
    assert (found["file"], found["line"], found["seq"]) == (f"{tmp_path}/audit.log", 4, 28)
    assert (found["fault"], found["is_whole"]) == ("edited", False)


def test_a_public_key_is_a_file_or_the_key_itself(trail: Writer, tmp_path: Path) -> None:
    """PEM, hex or base64."""
    folder = tmp_path / "trail"
    folder.mkdir()
    files = write(folder, trail.files)
    pem = tmp_path / "key.pem"
    pem.write_text(to_pem(KEY.public))

    assert run("verify", *files, "--public-key", str(pem)) == 0
    pem.write_text("no key")
    assert run("verify", *files, "--public-key", str(pem)) == 2
    assert run("verify", *files, "--public-key", Key(2).public.hex()) == 1


def test_retention_is_told(trail: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And that a new chain began after a repair."""
    trail.reduce("audit.log.000000000001-000000000012")
    trail.files[NAME][7] = b"garbage\n"
    trail.repair()
    trail.checkpoint()

    assert run("verify", *write(tmp_path, trail.files), "--public-key", HEX) == 0
    out = capsys.readouterr().out

    assert "dropped: 8 records, by retention" in out
    assert "note: set aside by a repair: " in out
    assert "a new chain begins with record 40 (2026-09-21T00:00:40.125Z) after a repair; the broken file is" in out


def test_search_reads_what_retention_and_repairs_have_left(
    trail: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From all files, in the order of their records."""
    trail.reduce("audit.log.000000000001-000000000012")
    trail.files[NAME][7] = b"garbage\n"
    trail.repair()

    assert run("search", "--files", *write(tmp_path, trail.files), "--until", "2026-09-21T00:00:14Z") == 0
    numbers = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert numbers == ["#1", "#10", "#11", "#12", "#13"]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["1234abcd-12ab-34cd-56ef-1234567890ab"], 32),
        (["arn:aws:kms:local-host-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"], 32),
        (["--key", "other"], 0),
        (["--principal", "uid:1000"], 32),
        (["--principal", "user:alice"], 32),
        (["--principal", "alice"], 32),
        (["--principal", "unit:web.service"], 32),
        (["--principal", "exe:/usr/bin/web"], 32),
        (["--principal", "exe:/usr/bin/other"], 0),
        (["--operation", "createkey"], 2),
        (["--operation", "CreateKey", "--outcome", "ok"], 1),
        (["--outcome", "error"], 0),
        (["--outcome", "AccessDenied"], 0),
        (["-c", "purpose=p-28"], 1),
        (["-c", "purpose=p-28", "-c", "x=y"], 0),
        (["--since", "2026-09-21T00:00:39Z"], 1),
        (["--since", "2026-09-21T00:00:01Z", "--until", "2026-09-21T00:00:02.125Z"], 2),
        (["-n", "7"], 7),
    ],
)
def test_search_filters(
    trail: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], count: int
) -> None:
    """What is asked for has to hold all together."""
    assert run("search", *words, "--files", *write(tmp_path, trail.files)) == 0

    assert len(capsys.readouterr().out.splitlines()) == count


@pytest.mark.parametrize(
    "words",
    [["--since", "soon"], ["--principal", "uid:x"], ["-n", "0"], ["a", "--key", "b"], ["alias/a"], ["-c", "x"]],
)
def test_a_search_that_makes_no_sense_is_refused(trail: Writer, tmp_path: Path, words: list[str]) -> None:
    """With the exit code of a wrong command line."""
    assert run("search", *words, "--files", *write(tmp_path, trail.files)) == 2


def test_who_counts_what_each_principal_did(trail: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mutation counts once, by its outcome."""
    key = "1234abcd-12ab-34cd-56ef-1234567890ab"

    assert run("who", key, "--json", "--files", *write(tmp_path, trail.files)) == 0

    assert json.loads(capsys.readouterr().out) == [
        {
            "principal": "user:alice unit:web.service",
            "operations": {"Encrypt": 30, "CreateKey": 1},
            "refused": 0,
            "first": "2026-09-21T00:00:02.125Z",
            "last": "2026-09-21T00:00:39.125Z",
        }
    ]


def test_lines_that_are_no_records_are_said_and_passed_over(
    trail: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search is no verification, but hides nothing."""
    trail.files[NAME][3] = b'{"seq":28,"garbage\n'

    assert run("search", "--files", *write(tmp_path, trail.files), "--since", "2026-09-21T00:00:39Z") == 0
    told = capsys.readouterr()

    assert len(told.out.splitlines()) == 1
    assert "kms: error: a line that is no record was passed over" in told.err
