"""A person at a terminal, for commands that ask."""

import io

import pytest


class Terminal(io.StringIO):
    """Standard input on which somebody types."""

    def isatty(self) -> bool:
        return True


def types(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let the next command find `text` typed."""
    monkeypatch.setattr("sys.stdin", Terminal(text))


def pipes(monkeypatch: pytest.MonkeyPatch, text: str = "") -> None:
    """Let the next command find `text` on a standard input that is no terminal."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
