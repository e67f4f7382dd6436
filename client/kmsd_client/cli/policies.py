"""Show, check and change key policies, which say who may do what with a key."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from kmsd.api.policies import (
    GET_KEY_POLICY,
    PUT_KEY_POLICY,
    GetKeyPolicyRequest,
    PutKeyPolicyRequest,
)
from kmsd_client import Client
from kmsd_client.cli.keys import KEY_HELP, key_id_of
from kmsd_client.cli.terminal import CommandError, add_json_option, print_json

# Of the characters that AWS allows in a policy; in valid JSON they only stand in strings.
_CONTROLS = re.compile(r"[\x7f-\x9f]")


class NotTextError(CommandError):
    """What was to be a policy is no text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    verbs = parser.add_subparsers(required=True, metavar="show|set|check|edit")
    show = verbs.add_parser("show", help="print a key's policy as it is stored")
    show.add_argument("key", help=KEY_HELP)
    add_json_option(show)
    show.set_defaults(run=run_show)
    setting = verbs.add_parser("set", help="give a key another policy")
    setting.add_argument("key", help=KEY_HELP)
    setting.add_argument("file", metavar="FILE", help="the policy; - is standard input")
    setting.add_argument(
        "--bypass-lockout-check", action="store_true", help="store it even if you could not change it again"
    )
    setting.set_defaults(run=run_set)
    check = verbs.add_parser("check", help="tell what a policy says, or what is wrong with it; nothing is changed")
    check.add_argument("file", metavar="FILE", help="the policy; - is standard input")
    check.add_argument("--host", action="store_true", help="it is a file of the host policy, not a key's")
    check.set_defaults(run=_run_check)
    edit = verbs.add_parser("edit", help="change a key's policy in $VISUAL, $EDITOR, vi or nano")
    edit.add_argument("key", help=KEY_HELP)
    edit.set_defaults(run=_run_edit)


def run_show(options: argparse.Namespace) -> None:
    """Print a policy: as it is, but on a terminal without what could control that."""
    with Client(options.socket) as client:
        found = client.call(GET_KEY_POLICY, GetKeyPolicyRequest(key_id=key_id_of(client, options.key)))
    if options.json:
        print_json(found)
    else:
        text = _harmless(found.policy) if sys.stdout.isatty() else found.policy
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def run_set(options: argparse.Namespace) -> None:
    """Give a key another policy."""
    text = policy_in(options.file)
    with Client(options.socket) as client:
        client.call(
            PUT_KEY_POLICY,
            PutKeyPolicyRequest(
                key_id=key_id_of(client, options.key),
                policy=text,
                bypass_policy_lockout_safety_check=options.bypass_lockout_check,
            ),
        )


def _harmless(text: str) -> str:
    """Return the same document with its control characters escaped, and no line that goes over another."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text).replace("\r\n", "\n").replace("\r", "\n")


def policy_in(file: str) -> str:
    """Return the text of a file, or of standard input."""
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotTextError(f"{file} is not text: {error.reason} at byte {error.start}") from None


def _run_check(options: argparse.Namespace) -> None:
    from kmsd_client.cli.policy_check import run_check  # noqa: PLC0415 - each verb loads what it needs

    run_check(options)


def _run_edit(options: argparse.Namespace) -> None:
    from kmsd_client.cli.policy_edit import run_edit  # noqa: PLC0415 - each verb loads what it needs

    run_edit(options)
