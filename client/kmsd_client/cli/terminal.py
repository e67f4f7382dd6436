"""How `kms` speaks: one page of rules.

Results go to standard output, everything else to standard error. What failed is `kms: error: WHAT HAPPENED`, in lower
case and without a full stop, then, where there is something to do, `kms: hint: WHAT TO DO`. Tables are for people,
`--json` is for programs. Text that came from elsewhere is printed with control characters escaped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from kmsd.api.errors import KmsError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it

# What to do about an error, by its code; said where the code alone does not tell it.
_HINTS = {
    "DisabledException": "whoever manages the key can let it be used again: kms key enable",
    "SealedException": "an administrator has to unseal kmsd: kms unseal",
    "TokenException": "kms status and kmsd's log tell how the token is",
    "TokenPinIncorrectException": "try again with care: a token locks itself after a few wrong PINs",
    "TokenPinBlockedException": "look at the token with its own tool (for many: pkcs11-tool), then run kms unseal",
    "TokenPinUnavailableException": "run kms unseal and type the PIN, or name a file with --pin-file",
    "RecoverySharesException": "bring the shares of this host, each once: kms unseal --share",
    "RecoveryUnavailableException": "unseal with the token: kms unseal",
    "AuditUnavailableException": "an administrator has to look at the audit trail: its disk may be full",
    "ConnectionLostException": "is kmsd running? name its socket with --socket or KMSD_SOCKET",
    "MessageFormatException": "is this the right file, and all of it?",
}
# The same for codes that mean several things, by what the message ends with.
_HINTS_BY_END = {
    " is pending deletion.": "whoever manages the key can keep it: kms key cancel-deletion",
}

# What an error means that comes without a message, because AWS KMS sends none either.
_WORDS = {
    "InvalidCiphertextException": "the ciphertext was changed, or was made with another key or encryption context",
}


class CommandError(Exception):
    """A command cannot go on; `hint` says what to do."""

    def __init__(self, message: str, hint: str | None = None, *, code: int = EXIT_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def printable(text: str) -> str:
    """Return `text` with everything escaped that could move a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def complain(message: str, hint: str | None = None) -> None:
    """Print an error and perhaps a hint."""
    sys.stderr.write(f"kms: error: {printable(message)}\n")
    if hint:
        sys.stderr.write(f"kms: hint: {printable(hint)}\n")


def complain_of(error: KmsError) -> None:
    """Print an error that the daemon or the library reported."""
    message = error.message or _WORDS.get(error.code, "no reason is given")
    hint = next((hint for end, hint in _HINTS_BY_END.items() if message.endswith(end)), _HINTS.get(error.code))
    complain(f"{error.code}: {message}".removesuffix("."), hint)


def note(text: str) -> None:
    """Say something beside the results that is no error."""
    sys.stderr.write(f"kms: {printable(text)}\n")


def print_json(value: Any) -> None:
    """Print a response for a program; bytes are base64."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_json_line(value: Any) -> None:
    """Print a value for a program that reads lines."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows in columns as wide as their longest cell."""
    cells = [[*heads], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    for line in fact_lines(facts):
        print(line)


def fact_lines(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Return names and values, one pair a line."""
    pairs = list(facts)
    width = max(len(name) for name, _ in pairs) + 2
    return [f"{name + ':':<{width}}{printable(value)}" for name, value in pairs]


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the option to print JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_context_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the option for an encryption context."""
    parser.add_argument(
        "-c", "--context", action="append", default=[], metavar="NAME=VALUE", help="a pair of the encryption context"
    )


def context_of(pairs: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE pairs."""
    context: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise CommandError(f"'{pair}' is no pair", "write it as NAME=VALUE", code=EXIT_USAGE)
        if name in context:
            raise CommandError(f"'{name}' is given twice", code=EXIT_USAGE)
        context[name] = value
    return context
