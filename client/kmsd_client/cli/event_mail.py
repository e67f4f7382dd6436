"""Events as mails, handed to sendmail(8), which every mail system of a host brings along."""

from __future__ import annotations

import re
import socket
import subprocess
from email.message import EmailMessage
from pathlib import Path

from kmsd.api.events import Event
from kmsd_client.cli.terminal import EXIT_USAGE, CommandError, printable

SENDMAIL = Path("/usr/sbin/sendmail")
# One mailbox, and nothing that a mail system would take for a list, a file, a program or a header.
_ADDRESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,63}(@[A-Za-z0-9.-]{1,253})?")
# RFC 5322, 2.1.1: a line has at most 998 characters; nobody reads more of a subject.
_SUBJECT_CHARACTERS = 120
# It queues, and does not wait for the network.
_SECONDS = 60


class Mailer:
    """Mails each event to one address, by `program`."""

    def __init__(self, address: str, program: Path = SENDMAIL) -> None:
        if not _ADDRESS.fullmatch(address):
            raise CommandError(f"'{address}' is no address", "write it as root or admin@example.org", code=EXIT_USAGE)
        self._address = address
        self._program = program
        self._host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())

    def deliver(self, line: bytes, event: Event) -> None:
        """Hand an event to the mail system; raises CommandError when it does not take it."""
        try:
            done = subprocess.run(  # noqa: S603 - a fixed command line, without a shell
                [self._program, "-i", "-t"],
                input=bytes(self._mail(line, event)),
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = error.strerror if isinstance(error, OSError) else f"it did not end within {_SECONDS} s"
            raise self._failed(f"{why}") from None
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise self._failed(said or f"exit code {done.returncode}")

    def _mail(self, line: bytes, event: Event) -> EmailMessage:
        mail = EmailMessage()
        mail["To"] = self._address
        mail["Subject"] = _header(f"kmsd on {self._host}: {event.detail_type}")
        # Who has had it already knows it by this.
        mail["Message-ID"] = _header(f"<{event.id}@kmsd.{self._host}>")
        mail["Auto-Submitted"] = "auto-generated"
        facts = (f"time: {event.time}", f"severity: {event.severity}", *(f"key: {arn}" for arn in event.resources))
        text = "\n".join(map(printable, (event.message, "", *facts)))
        mail.set_content(f"{text}\n\n{printable(line.decode('utf-8'))}\n", cte="quoted-printable")
        return mail

    def _failed(self, why: str) -> CommandError:
        return CommandError(
            f"{self._program} did not take the mail: {why}",
            "see the log of the host's mail system; the event is told again by the next kms events",
        )


def _header(text: str) -> str:
    """Return text as a header takes it: one line of printable ASCII."""
    return re.sub(r"[^ -~]", "?", text)[:_SUBJECT_CHARACTERS]
