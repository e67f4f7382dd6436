"""The token's PIN while `kmsd init` runs: read once into secret memory, never shown."""

from __future__ import annotations

import getpass
import hmac
import os
from pathlib import Path

from kmsd.commands.steps import SetupError
from kmsd.hsm.pin import FilePin, PinSource
from kmsd.memory.page import Page

_STANDARD_INPUT = 0
_NEWLINES = b"\r\n"


class HeldPin:
    """A PIN in a page of secret memory, for this process and those that are forked from it."""

    def __init__(self, page: Page, length: int) -> None:
        self._page = page
        self._length = length

    @classmethod
    def of(cls, source: PinSource) -> HeldPin:
        """Read the PIN of `source` once; raises PinUnavailableError."""
        page = Page.create()
        return cls(page, source.read_into(page.view))

    @property
    def view(self) -> memoryview:
        """The PIN, where it lies."""
        return self._page.view[: self._length]

    def equals(self, other: HeldPin) -> bool:
        """Tell whether `other` is the same PIN."""
        return hmac.compare_digest(self.view, other.view)

    def read_into(self, view: memoryview) -> int:
        """Copy the PIN to the start of `view` and return its length."""
        # A forked process has the descriptor, but not the mapping.
        page = Page.from_descriptor(os.dup(self._page.fd))
        view[: self._length] = page.view[: self._length]
        page.close_descriptor()
        return self._length


class _StandardInputPin:
    def read_into(self, view: memoryview) -> int:
        """Read up to the end of standard input."""
        length = 0
        while length < len(view) and (count := os.readv(_STANDARD_INPUT, [view[length:]])):
            length += count
        while length and view[length - 1] in _NEWLINES:
            length -= 1
        if not length or length == len(view):
            raise SetupError("standard input has to hold the token's PIN, and nothing else")
        return length


class _TypedPin:
    def __init__(self, label: str) -> None:
        self._label = label

    def read_into(self, view: memoryview) -> int:
        """Ask at the terminal, without an echo."""
        # Text of Python's own, which nothing can wipe: this process ends soon, and is no daemon.
        typed = getpass.getpass(f"PIN of the token {self._label!r}: ").encode()
        if not typed or len(typed) > len(view):
            raise SetupError("no PIN was given")
        view[: len(typed)] = typed
        return len(typed)


def vendor_pin(file: str | None, label: str, *, interactive: bool) -> HeldPin:
    """Return the PIN of a token that exists: from a file, from standard input ("-"), or typed."""
    if file == "-":
        return HeldPin.of(_StandardInputPin())
    if file is not None:
        return HeldPin.of(FilePin(Path(file)))
    if not interactive:
        raise SetupError(
            "nobody is there to ask for the token's PIN: name the token with --module and --token-label, and the PIN's "
            "file with --pin-file, or - for standard input"
        )
    return HeldPin.of(_TypedPin(label))
