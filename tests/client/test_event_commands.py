"""`kms events`: how positions are kept, how events are mailed, and what happens when either cannot be."""

from __future__ import annotations

import email
import email.policy
import signal
import socket
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from kmsd.api.errors import ConnectionLostError
from kmsd.api.events import Event, SubscribeEventsRequest, SubscribeEventsResponse, encode_event
from kmsd_client.cli import event_mail
from kmsd_client.cli.event_mail import Mailer
from kmsd_client.cli.event_position import PositionFile
from kmsd_client.cli.events import Delivery
from kmsd_client.cli.main import main
from kmsd_client.cli.terminal import CommandError
from kmsd_client.events import Subscription
from tests.client.scripted import Answer, ScriptedDaemon


def event(sequence: int, message: str = "something happened", detail_type: str = "Sealed") -> Event:
    numbered = {"sequence": sequence} if sequence else {}
    return Event(
        version="0",
        id=f"00000000-0000-8000-8000-{sequence:012d}",
        detail_type=detail_type,
        source="kmsd",
        account="123456789012",
        time="2026-11-26T02:31:05Z",
        region="local-host-1",
        resources=["arn:aws:kms:local-host-1:123456789012:key/1234"],
        detail={**numbered, "severity": "warning", "message": message},
    )


class Stream(Subscription):
    """A subscription to these events; the daemon sends them in pieces of so many bytes."""

    def __init__(self, events: Sequence[Event], *, until: int, follows: bool = False, cut: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        response = SubscribeEventsResponse(after_sequence=3, until_sequence=until)
        super().__init__(response, theirs, follows=follows)
        data = b"".join(map(encode_event, events))[:cut]

        def send() -> None:
            with ours:
                for start in range(0, len(data), 100):
                    ours.send(data[start : start + 100])

        self._sending = threading.Thread(target=send)
        self._sending.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sending.join()
        self._channel.close()


def test_a_stream_is_read_to_its_end() -> None:
    """Whatever pieces it comes in."""
    events = [event(sequence) for sequence in range(4, 40)]
    with Stream(events, until=39) as stream:
        assert list(stream.events()) == [(encode_event(one)[:-1], one) for one in events]


@pytest.mark.parametrize("cut", [0, 1, 400, -1])
def test_a_stream_that_breaks_off_is_no_whole_one(cut: int) -> None:
    """Else a program would take it for all there is."""
    with Stream([event(4), event(5)], until=5, cut=cut) as stream, pytest.raises(ConnectionLostError):
        list(stream.events())


def test_a_stream_that_is_followed_ends_with_the_daemon() -> None:
    """What it was cut off in comes again."""
    with Stream([event(4), event(5)], until=3, follows=True, cut=-1) as stream:
        assert [one.sequence for _, one in stream.events()] == [4]


def test_what_is_no_event_is_not_taken_for_one() -> None:
    """It is said, and the stream is over."""
    ours, theirs = socket.socketpair()
    response = SubscribeEventsResponse(after_sequence=0, until_sequence=1)
    with ours, theirs:
        ours.send(b"{}\n")
        with pytest.raises(ConnectionLostError, match="what is no event"):
            list(Subscription(response, theirs, follows=False).events())


def test_a_position_is_kept_and_read(tmp_path: Path) -> None:
    """There is none at first."""
    position = PositionFile(tmp_path / "position")
    assert position.read() is None
    for sequence in (7, 1234567890123456789):
        position.keep(sequence)
        assert PositionFile(tmp_path / "position").read() == sequence
    assert [path.name for path in tmp_path.iterdir()] == ["position"]


@pytest.mark.parametrize("content", [b"", b"x", b"-1\n", b"1\n2\n", b"9" * 20])
def test_another_s_file_is_no_position(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """It is neither read nor written."""
    path = tmp_path / "position"
    path.write_bytes(content)

    assert main(["events", "--position", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"kms: error: {path} holds no position\nkms: hint: ")
    assert path.read_bytes() == content


def test_what_was_delivered_is_kept_and_nothing_else() -> None:
    """Where the stream begins at first; and no event that failed, or that has no number."""
    kept: list[int] = []
    delivered: list[int] = []

    def deliver(_: bytes, one: Event) -> None:
        if one.sequence == 6:
            raise CommandError("not now")
        delivered.append(one.sequence)

    with (
        Delivery([deliver], kept.append) as delivery,
        Stream([event(4), event(0), event(5), event(6), event(7)], until=7) as stream,
        pytest.raises(CommandError),
    ):
        delivery.take(stream)

    assert delivered == [4, 0, 5]
    assert kept == [3, 4, 5]


def test_a_position_of_another_trail_is_given_up() -> None:
    """What was delivered last is no longer known by its number."""
    kept: list[int] = []
    with Delivery([], kept.append) as delivery:
        delivery.last = 5000
        with Stream([event(4)], until=4) as stream:
            delivery.take(stream)
        delivery.last = 5000
        with Stream([], until=3) as stream:
            delivery.take(stream)

    assert (kept, delivery.last) == ([3, 4, 3], 3)


def test_a_number_that_the_trail_has_not_got_is_said(
    daemon: ScriptedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """A date without dashes is one, too."""

    def answer(_name: str, _request: object) -> Answer:
        ours, theirs = socket.socketpair()
        ours.close()
        return SubscribeEventsResponse(after_sequence=7, until_sequence=7), [theirs.detach()]

    daemon.answer = answer

    assert main(["--socket", str(daemon.path), "events", "--since", "20261126"]) == 0
    assert capsys.readouterr().err == (
        "kms: the audit trail ends at record 7, before record 20261126: what comes behind its end is told; kms events "
        "--since 0 tells all\n"
    )


def test_a_signal_waits_for_what_is_being_delivered() -> None:
    """So that it is not told again after a stop."""
    before = signal.getsignal(signal.SIGTERM)
    kept: list[int] = []
    with (
        Delivery([lambda *_: signal.raise_signal(signal.SIGTERM)], kept.append) as delivery,
        Stream([event(4), event(5)], until=5) as stream,
        pytest.raises(SystemExit) as ended,
    ):
        delivery.take(stream)

    assert ended.value.code == 0
    assert kept == [3, 4]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def sendmail(tmp_path: Path) -> Path:
    """A mail system that keeps its command line and what it was given."""
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" > {tmp_path}/arguments\ncat > {tmp_path}/mail\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_an_event_is_mailed(sendmail: Path) -> None:
    """To one address, as one whole mail, by a command line that is always the same."""
    one = event(7, "é: key 1 is\ngone")
    Mailer("ops@example.org", sendmail).deliver(encode_event(one)[:-1], one)
    mail = email.message_from_bytes(sendmail.with_name("mail").read_bytes(), policy=email.policy.default)

    assert sendmail.with_name("arguments").read_text() == "-i -t\n"
    assert mail["To"] == "ops@example.org"
    assert mail["Subject"].startswith("kmsd on ")
    assert mail["Subject"].endswith(": Sealed")
    assert mail["Auto-Submitted"] == "auto-generated"
    assert one.id in mail["Message-ID"]
    body = mail.get_content()
    assert body.startswith("é: key 1 is\\ngone\n\ntime: 2026-11-26T02:31:05Z\nseverity: warning\nkey: arn:aws:kms:")
    assert '"sequence":7' in body


def test_no_header_can_be_smuggled_in(sendmail: Path) -> None:
    """Whatever an event says."""
    one = event(7, "a\r\nBcc: eve@example.org\r\n\r\n.\r\n", "Sealed\nBcc: eve@example.org")
    Mailer("root", sendmail).deliver(encode_event(one)[:-1], one)
    mail = email.message_from_bytes(sendmail.with_name("mail").read_bytes())

    assert sorted(set(mail.keys())) == sorted(
        {"To", "Subject", "Message-ID", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"}
    )
    assert "Bcc" not in mail


@pytest.mark.parametrize(
    "address", ["", "-f", "a b", "a,b", "a\nBcc: b", "|/bin/sh", "/etc/passwd", "<a@b>", "a@b\n", ":include:/x", "é@b"]
)
def test_what_is_no_address_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is asked for."""
    assert main(["events", f"--mail={address}"]) == 2
    assert "is no address" in capsys.readouterr().err


def test_thousands_of_mails_have_to_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a beginning, all events that are kept would be mailed."""
    assert main(["events", "--mail", "root"]) == 2
    assert capsys.readouterr().err == (
        "kms: error: all events that are kept would be mailed\n"
        "kms: hint: say --follow for those to come, --since for later ones, --since 0 for all\n"
    )


def test_a_mail_that_is_not_taken_is_said(tmp_path: Path, sendmail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the event is not taken for told."""
    one = event(7)
    sendmail.write_text("#!/bin/sh\necho 'no such user' >&2\nexit 67\n")
    with pytest.raises(CommandError, match="did not take the mail: no such user"):
        Mailer("root", sendmail).deliver(b"{}", one)
    sendmail.write_text("#!/bin/sh\nexit 75\n")
    with pytest.raises(CommandError, match="exit code 75"):
        Mailer("root", sendmail).deliver(b"{}", one)
    with pytest.raises(CommandError, match="No such file"):
        Mailer("root", tmp_path / "none").deliver(b"{}", one)
    monkeypatch.setattr(event_mail, "_SECONDS", 0.1)
    sendmail.write_text("#!/bin/sh\nexec sleep 10\n")
    with pytest.raises(CommandError, match="did not end"):
        Mailer("root", sendmail).deliver(b"{}", one)


def test_a_beginning_that_is_no_time_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """As everywhere else."""
    assert main(["events", "--since", "soon"]) == 2
    assert "'soon' is no time" in capsys.readouterr().err


def test_who_follows_needs_a_daemon_to_begin_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was there is waited for; a wrong socket is not."""
    assert main(["--socket", str(tmp_path / "none"), "events", "--follow"]) == 3
    assert "cannot connect" in capsys.readouterr().err
    assert SubscribeEventsRequest().follow is False
