"""PIN files."""

import os
from pathlib import Path

import pytest

from kmsd.hsm.pin import CredentialPin, FilePin
from kmsd.hsm.root import PinUnavailableError
from tests.support.other_user import DAEMON_GID, DAEMON_UID, as_user


def read(path: Path, room: int = 100) -> bytes:
    view = memoryview(bytearray(room))
    return bytes(view[: FilePin(path).read_into(view)])


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"1234", b"1234\n", b"1234\r\n", b"1234\n\n"])
def test_newlines_at_the_end_do_not_count(tmp_path: Path, content: bytes) -> None:
    """A PIN file may be written with an editor."""
    assert read(write(tmp_path / "pin", content)) == b"1234"


def test_blanks_belong_to_the_pin(tmp_path: Path) -> None:
    """Only newlines are cut: a PIN may hold anything else."""
    assert read(write(tmp_path / "pin", b" 12 34 \n")) == b" 12 34 "


def test_a_corrected_file_works_at_once(tmp_path: Path) -> None:
    """The file is read anew each time."""
    pin = FilePin(write(tmp_path / "pin", b"1234"))
    view = memoryview(bytearray(10))
    pin.read_into(view)
    write(tmp_path / "pin", b"98765")

    assert bytes(view[: pin.read_into(view)]) == b"98765"


def test_the_group_may_be_let_in(tmp_path: Path) -> None:
    """systemd's credentials have mode 0440, where the group's bits are the mask of an ACL."""
    assert read(write(tmp_path / "pin", b"1234", 0o440)) == b"1234"


def test_a_file_open_to_everyone_is_refused(tmp_path: Path) -> None:
    """Whoever has the PIN and reaches the token has the root key's service."""
    with pytest.raises(PinUnavailableError, match="chmod 600"):
        read(write(tmp_path / "pin", b"1234", 0o644))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message says which file, and why."""
    with pytest.raises(PinUnavailableError, match=f"{tmp_path}/pin .*No such file"):
        read(tmp_path / "pin")


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty PIN is a set-up that was not finished, and not worth one of the token's tries."""
    with pytest.raises(PinUnavailableError, match="empty"):
        read(write(tmp_path / "pin", content))


def test_a_file_that_holds_more_is_refused(tmp_path: Path) -> None:
    """A PIN that does not fit is never cut off and tried."""
    with pytest.raises(PinUnavailableError, match="too long"):
        read(write(tmp_path / "pin", b"1" * 100), room=100)


def test_a_fifo_does_not_stop_the_daemon(tmp_path: Path) -> None:
    """What is not a regular file is refused without waiting for it."""
    os.mkfifo(tmp_path / "pin", 0o600)

    with pytest.raises(PinUnavailableError, match="not a regular file"):
        read(tmp_path / "pin")


def credential(name: str, directory: Path | None) -> bytes:
    view = memoryview(bytearray(100))
    return bytes(view[: CredentialPin(name, directory).read_into(view)])


def test_a_credential_is_read_as_a_file(tmp_path: Path) -> None:
    """Of its name in the directory that systemd passes, with the mode that it has there."""
    write(tmp_path / "hsm-pin", b"1234\n", 0o440)
    assert credential("hsm-pin", tmp_path) == b"1234"


def test_a_credential_that_was_not_passed_is_missed_when_it_is_needed(tmp_path: Path) -> None:
    """Whether there is a directory or not; the message says what to do."""
    for directory in (None, tmp_path, tmp_path / "none"):
        with pytest.raises(PinUnavailableError, match=r"'hsm-pin' was not passed.*restart kmsd, or unseal with"):
            credential("hsm-pin", directory)


def test_a_name_leads_nowhere_else(tmp_path: Path) -> None:
    """The two that stand for directories are no files."""
    for name in (".", ".."):
        with pytest.raises(PinUnavailableError):
            credential(name, tmp_path)


@pytest.mark.root
def test_a_credential_of_somebody_else_is_refused_in_words(short_path: Path) -> None:
    """Whoever inherits the variable of another service may not enter its directory."""
    write(short_path / "hsm-pin", b"1234")

    def act() -> str:
        try:
            credential("hsm-pin", short_path)
        except PinUnavailableError as error:
            return str(error)
        return "read"

    assert "'hsm-pin' was not passed" in as_user(DAEMON_UID, DAEMON_GID, act)
