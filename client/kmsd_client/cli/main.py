"""`kms`: finds the verb, imports only that verb's module, and turns failures into words and exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import kmsd
from kmsd.api.errors import AccessDeniedError, ConnectionLostError, KmsError, UntrustedServerError
from kmsd_client.cli.refusals import refusal_of
from kmsd_client.cli.terminal import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    CommandError,
    complain,
    complain_of,
)


class Verb(NamedTuple):
    """Where a verb lives and what it does."""

    module: str
    summary: str


VERBS = {
    "encrypt": Verb("encrypt", "encrypt a file"),
    "decrypt": Verb("decrypt", "decrypt a file"),
    "key": Verb("keys", "make, list, share and rotate keys, and take them out of use"),
    "alias": Verb("aliases", "name keys"),
    "tag": Verb("tags", "tag keys"),
    "policy": Verb("policies", "show, check and change key policies"),
    "grant": Verb("grants", "permit others single operations with a key"),
    "credential": Verb("credentials", "keep secrets for services, which systemd hands to them"),
    "why": Verb("why", "tell why a request was refused, or who may do what"),
    "random": Verb("randomness", "print random bytes"),
    "status": Verb("status", "tell how the daemon is"),
    "metrics": Verb("metrics", "tell how the daemon does in numbers, for Prometheus"),
    "clock": Verb("clock", "tell whether the clock is believed, and confirm it"),
    "seal": Verb("seal", "wipe all keys from the daemon's memory"),
    "unseal": Verb("unseal", "give the daemon the token's PIN, and so its keys"),
    "doctor": Verb("doctor", "check the installation and say what to do"),
    "events": Verb("events", "tell what happened that somebody should know, and follow it"),
    "audit": Verb("audit", "read, search and verify the audit trail"),
    "api": Verb("api", "call any operation by its name"),
}

_EPILOG = """exit codes:
  0  done
  1  refused or failed; standard error says why
  2  the command line is wrong
  3  no daemon answered
"""


def general_parser() -> argparse.ArgumentParser:
    """Return the parser that finds the verb and leaves the rest to that verb's own."""
    verbs = "\n".join(f"  {name:<11}{verb.summary}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="kms",
        description=f"Use the keys of kmsd, the key management service of this host.\n\nverbs:\n{verbs}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kms {kmsd.__version__}")
    parser.add_argument("--socket", metavar="PATH", help="the daemon's socket; otherwise KMSD_SOCKET, then the usual")
    parser.add_argument("verb", metavar="VERB", choices=[*VERBS], help="what to do; kms VERB --help tells more")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help=argparse.SUPPRESS)
    return parser


def parser_of(verb: str, *, socket: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a verb, whose module alone is imported; `socket` is what was given before the verb."""
    module = importlib.import_module(f"kmsd_client.cli.{VERBS[verb].module}")
    parser = argparse.ArgumentParser(prog=f"kms {verb}", description=module.__doc__)
    parser.add_argument("--socket", metavar="PATH", default=socket, help=argparse.SUPPRESS)
    module.add_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kms` and return its exit code."""
    _open_what_is_closed()
    general = general_parser().parse_args(arguments)
    parser = parser_of(general.verb, socket=general.socket)
    options = parser.parse_args(general.words)
    return _run(options.run, options)


def _open_what_is_closed() -> None:
    """Have a standard stream that was closed lead nowhere; no other file may take its place, and Python has None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - it stays open


def _run(run: Callable[[argparse.Namespace], int | None], options: argparse.Namespace) -> int:
    try:
        code = run(options) or 0
        sys.stdout.flush()
    except CommandError as error:
        complain(error.message, error.hint)
        return error.code
    except (ConnectionLostError, UntrustedServerError) as error:
        complain_of(error)
        return EXIT_UNREACHABLE
    except AccessDeniedError as error:
        refusal = refusal_of(error, getattr(options, "key", None))
        # Who asks for JSON is a program, and looks for the code.
        code_first = f"{error.code}: " if getattr(options, "json", False) else ""
        complain(f"{code_first}{refusal.sentence}", refusal.hint)
        return EXIT_ERROR
    except KmsError as error:
        complain_of(error)
        return EXIT_ERROR
    except BrokenPipeError:
        _drop_output()  # whoever read it has enough
        return EXIT_ERROR
    except OSError as error:
        _drop_output()
        complain(f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _drop_output() -> None:
    """Forget what standard output did not take, or Python would fail with it once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
