"""The manual pages: made from the parsers of the commands and from the sample of the settings, so that they agree."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from kmsd.commands.main import make_parser
from kmsd_client.cli.main import VERBS, general_parser, parser_of
from systemd.debian.locked import ROOT

SAMPLE = ROOT / "systemd" / "kmsd.toml"

_KMS = """\
.B kms
uses the keys of
.BR kmsd (8),
the key management service of this host: it encrypts and decrypts files, makes and shows keys, and tells who did what.
Who is calling is what the kernel says of this process; there is nothing to log in with.
.PP
The daemon's socket is the first of these that there is: the one of
.BR \\-\\-socket ,
of the variable
.BR KMSD_SOCKET ,
.IR /run/kmsd/kmsd.sock ,
and
.I $XDG_RUNTIME_DIR/kmsd/kmsd.sock
of a user's own daemon.
"""
_KMSD = """\
.B kmsd
is the daemon of the key management service, and what sets a host up for it. As root, once:
.PP
.nf
.RS
kmsd init \\-\\-recovery none
.RE
.fi
.PP
Afterwards systemd starts it by
.B kmsd.socket
and
.BR kmsd.service .
SIGHUP
.RB ( "systemctl reload kmsd" )
reads the host policy anew; SIGTERM finishes the requests under way, closes the trail, wipes the keys and ends.
.PP
Services get secrets from it without code of their own. An administrator keeps one for a unit with
.BR "kms credential create" ,
and the unit says
.PP
.nf
.RS
LoadCredential=NAME:/run/kmsd/credential.sock
.RE
.fi
.PP
so that systemd fetches it each time it starts the unit, and the service reads it from
.IR $CREDENTIALS_DIRECTORY/NAME .
The unit does not start while kmsd is sealed or has no such credential for this very unit.
"""
_SETTINGS = """\
.I /etc/kmsd/kmsd.toml
holds the settings of
.BR kmsd (8),
as TOML. What it does not name has its default. A name that kmsd does not know is an error.
.B kmsd check\\-config
tells whether the file is valid. Settings count from the next start on.
"""
_FILES = {
    "/etc/kmsd/kmsd.toml": "settings",
    "/etc/kmsd/policy.d/*.json": "host policies",
    "/etc/credstore.encrypted/kmsd.hsm-pin": "the token's PIN, encrypted for this host",
    "/run/kmsd/kmsd.sock": "socket",
    "/run/kmsd/credential.sock": "socket on which systemd asks for credentials of units",
    "/var/lib/kmsd": "store, and the token if it is SoftHSM2's",
    "/var/log/kmsd/audit.log": "audit trail",
}


def kms() -> str:
    """Return the page about the client."""
    verbs = {name: parser_of(name) for name in VERBS}
    return _page(
        "kms",
        "1",
        "use the keys of this host's key management service",
        [
            ("SYNOPSIS", _synopsis([general_parser(), *verbs.values()])),
            ("DESCRIPTION", _KMS),
            ("OPTIONS", "".join(_options(general_parser()))),
            ("VERBS", "".join(_verbs(verbs, {name: verb.summary for name, verb in VERBS.items()}))),
            (
                "EXIT STATUS",
                _definitions(
                    {
                        "0": "done",
                        "1": "refused or failed; standard error says why",
                        "2": "the command line is wrong",
                        "3": "no daemon answered",
                    }
                ),
            ),
            ("SEE ALSO", ".BR kmsd (8)\n"),
        ],
    )


def kmsd() -> str:
    """Return the page about the daemon."""
    parser = make_parser()
    verbs, summaries = _subparsers(parser)
    return _page(
        "kmsd",
        "8",
        "key management service behind a Unix socket",
        [
            ("SYNOPSIS", _synopsis(verbs.values())),
            ("DESCRIPTION", _KMSD),
            ("OPTIONS", "".join(_options(parser))),
            ("VERBS", "".join(_verbs(verbs, summaries))),
            ("FILES", _definitions(_FILES, font="I")),
            ("SEE ALSO", ".BR kms (1),\n.BR kmsd.toml (5),\n.I /usr/share/doc/kmsd/OPERATIONS.md\n"),
        ],
    )


def settings() -> str:
    """Return the page about the settings: the sample, its comments as text and its settings as headings of it."""
    return _page(
        "kmsd.toml",
        "5",
        "settings of the key management service",
        [
            ("DESCRIPTION", _SETTINGS),
            ("SETTINGS", "".join(_sample(SAMPLE.read_text("utf-8").splitlines()))),
            ("SEE ALSO", ".BR kmsd (8)\n"),
        ],
    )


PAGES: Mapping[str, Callable[[], str]] = {"kms.1": kms, "kmsd.8": kmsd, "kmsd.toml.5": settings}


def _page(name: str, section: str, purpose: str, sections: Iterable[tuple[str, str]]) -> str:
    body = "".join(f".SH {title}\n{text}" for title, text in sections)
    return f'.TH "{name.upper()}" "{section}" "" "kmsd" ""\n.SH NAME\n{name} \\- {purpose}\n{body}'


def _escaped(text: str) -> str:
    """Text as roff takes it literally: hyphens that can be copied, no line that is taken for a request."""
    literal = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return re.sub(r"^(?=[.'])", r"\\&", literal, flags=re.MULTILINE)


def _definitions(entries: Mapping[str, str], *, font: str = "B") -> str:
    return "".join(f".TP\n.{font} {_escaped(term)}\n{_escaped(text)}\n" for term, text in entries.items())


def _synopsis(parsers: Iterable[argparse.ArgumentParser]) -> str:
    lines = (" ".join(parser.format_usage().removeprefix("usage: ").split()) for parser in parsers)
    return "".join(f".HP\n{_escaped(line)}\n" for line in lines)


def _subparsers(parser: argparse.ArgumentParser) -> tuple[dict[str, argparse.ArgumentParser], dict[str, str]]:
    """Return the parsers of the verbs below `parser`, and what each does."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices), {one.dest: one.help or "" for one in action._choices_actions}
    return {}, {}


def _verbs(verbs: Mapping[str, argparse.ArgumentParser], summaries: Mapping[str, str]) -> Iterator[str]:
    for name, parser in verbs.items():
        yield f".SS {_escaped(parser.prog)}\n"
        yield f"{_escaped(parser.description or _sentence(summaries[name]))}\n"
        if parser.epilog:
            yield f".PP\n{_escaped(parser.epilog)}\n"
        yield from _options(parser)
        below, told = _subparsers(parser)
        for verb, sub in below.items():
            yield f".TP\n.B {_escaped(sub.prog)}\n{_escaped(_sentence(told.get(verb, '')))}\n.RS\n"
            yield from _options(sub)
            yield ".RE\n"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        hidden = action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction)
        if hidden or isinstance(action, argparse._SubParsersAction):
            continue
        value = str(action.metavar or action.dest) if action.nargs != 0 else ""
        names = ", ".join(action.option_strings)
        told = (action.help or "") % (vars(action) | {"prog": parser.prog})
        yield f".TP\n.B {_escaped(' '.join(filter(None, (names, value))))}\n{_escaped(told)}\n"


def _sample(lines: Iterable[str]) -> Iterator[str]:
    """Turn the sample's sections into subheadings, and each setting into a term explained by the comments before it."""
    told: list[str] = []
    for line in lines:
        if match := re.fullmatch(r"\[(\w+)\]", line):
            if told:
                yield f".PP\n{_escaped(' '.join(told))}\n"
            told = []
            yield f".SS [{match[1]}]\n"
        elif match := re.fullmatch(r"#?(\w+ = \S.*)", line):
            yield f".TP\n.B {_escaped(match[1])}\n{_escaped(' '.join(told) or 'See above.')}\n"
            told = []
        elif line.startswith("#"):
            told.append(line.lstrip("# ").rstrip())
        elif told:
            yield f".PP\n{_escaped(' '.join(told))}\n"
            told = []
