"""Marked secrets: text that occurs nowhere else, and the search for it in whatever form it may have leaked."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

# Shorter pieces may occur by chance.
_LEAST_BYTES = 12
# As much of a mark is enough to find it; the 16 random digits in it are of this run alone.
_CUT_BYTES = 20
# Enough of a secret that somebody else made to tell it from others.
_MOST_BYTES = 48
# How much of what is around a find is told.
_CONTEXT_BYTES = 60


class Marks:
    """Makes marks, and finds them. All begin alike, so that one search finds any of them, also one that was cut."""

    def __init__(self) -> None:
        self._start = f"mark{secrets.token_hex(_LEAST_BYTES)}"
        self._places: list[str] = []
        self._forms = {"a mark": forms(self._start[:_CUT_BYTES].encode())}

    def make(self, place: str) -> str:
        """A new mark, which stands for a secret at `place`."""
        self._places.append(place)
        return f"{self._start}n{len(self._places) - 1}n"

    def add(self, place: str, secret: bytes) -> None:
        """Search for a secret that somebody else made, too, if it is long enough."""
        if len(secret) >= _LEAST_BYTES:
            self._forms[place] = forms(secret[:_MOST_BYTES])

    def leaks(self, where: str, said: str | bytes) -> list[str]:
        """What `said` gives away: one line for each secret in it."""
        data = said.encode(errors="surrogatepass") if isinstance(said, str) else said
        return [f"{where}: {self._name(name, data, at)}" for name, at in self._finds(data)]

    def _finds(self, data: bytes) -> Iterator[tuple[str, int]]:
        for name, written in self._forms.items():
            at = max(data.find(form) for form in written)
            if at >= 0:
                yield name, at

    def leaks_below(self, folder: Path) -> list[str]:
        """What the files in a folder and below it give away."""
        return [
            leak
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            for leak in self.leaks(str(path.relative_to(folder)), path.read_bytes())
        ]

    def _name(self, name: str, data: bytes, at: int) -> str:
        number = re.compile(rb"n(\d+)n").match(data, at + len(self._start))
        place = self._places[int(number[1])] if number else name
        return f"{place}: {data[max(0, at - _CONTEXT_BYTES) : at + 2 * _CONTEXT_BYTES]!r}"


def forms(secret: bytes) -> list[bytes]:
    """The ways in which bytes are written down: as they are, in Python's and JSON's text, in hexadecimal, in base64."""
    written = [
        secret,
        repr(secret)[2:-1].encode(),
        secret.hex().encode(),
        secret.hex().upper().encode(),
        secret.hex(" ").encode(),
        ", ".join(map(str, secret)).encode(),
        "".join(f"\\u{byte:04x}" for byte in secret).encode(),
    ]
    for shift in range(3):
        # What stands before and behind it is encoded with it: the whole groups of three bytes in between tell.
        whole = secret[(3 - shift) % 3 :]
        encoded = base64.b64encode(whole[: len(whole) - len(whole) % 3])
        written += [encoded, encoded.translate(bytes.maketrans(b"+/", b"-_"))]
    return list(dict.fromkeys(written))
