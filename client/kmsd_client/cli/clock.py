"""Tell whether kmsd believes the clock, by which keys are rotated and destroyed, and confirm that it is right."""

from __future__ import annotations

import argparse
import sys

from kmsd.api.calendar import (
    CONFIRM_CLOCK,
    GET_CLOCK,
    ClockState,
    ConfirmClockRequest,
    GetClockRequest,
    GetClockResponse,
)
from kmsd_client import Client
from kmsd_client.cli.consent import add_yes_option, ask, check_for_terminal
from kmsd_client.cli.moments import counted, second
from kmsd_client.cli.terminal import add_json_option, fact_lines, print_facts, print_json

CLOCK_STATES = {
    ClockState.TRUSTED: "trusted",
    ClockState.AHEAD: "in doubt: it is ahead of the time that is sure to have passed",
    ClockState.BEHIND: "in doubt: it is behind the time that is sure to have passed",
}
_CONSEQUENCES = {
    ClockState.AHEAD: "what is due by the clock happens at once: keys are rotated, and those to be destroyed are",
    ClockState.BEHIND: "what is planned happens when the clock says so, and no sooner",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.usage = "kms clock [-h] [--json] [confirm [--yes]]"
    add_json_option(parser)
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(metavar="confirm")
    confirm = verbs.add_parser("confirm", help="say that the clock is right, so that what is due by it happens")
    add_yes_option(confirm)
    confirm.set_defaults(run=run_confirm)


def run(options: argparse.Namespace) -> None:
    """Tell how the clock is."""
    with Client(options.socket) as client:
        seen = client.call(GET_CLOCK, GetClockRequest())
    if options.json:
        print_json(seen)
    else:
        print_facts(_facts(seen))


def run_confirm(options: argparse.Namespace) -> None:
    """Confirm the clock, if that is wanted; what is confirmed is the time that was shown."""
    if not options.yes:
        check_for_terminal()
    with Client(options.socket) as client:
        seen = client.call(GET_CLOCK, GetClockRequest())
        if seen.state is ClockState.TRUSTED:
            print("the clock is trusted: there is nothing to confirm")
            return
        if not options.yes:
            client.close()  # a person takes his time; the daemon may have been restarted by then
            sys.stderr.write("".join(f"{line}\n" for line in [*fact_lines(_facts(seen)), _CONSEQUENCES[seen.state]]))
            ask("is the clock right? type yes to confirm it: ", {"yes"}, "nothing was confirmed")
        done = client.call(CONFIRM_CLOCK, ConfirmClockRequest(clock=seen.clock))
    print(f"the certain time was {second(done.before)}, and is {second(done.after)} now")


def _facts(seen: GetClockResponse) -> list[tuple[str, str]]:
    return [
        ("state", CLOCK_STATES[seen.state]),
        ("clock", second(seen.clock)),
        ("certain", second(seen.certain)),
        ("waiting", f"{counted(seen.waiting, 'key')} with something due by the clock" if seen.waiting else "nothing"),
    ]
