"""`kmsd`: the command that runs the daemon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import kmsd
from kmsd.commands.dev import run_dev
from kmsd.commands.serve import run_serve
from kmsd.config import DEFAULT_PATH, Config, ConfigurationError, load_config

# The choices of --recovery; what they mean is in `recovery_choice`, which the other verbs do without.
_RECOVERIES = ["shares", "none"]
# What shells and sysexits use for a wrong command line.
_EXIT_USAGE = 2
# 128 + SIGINT, as shells say it.
_EXIT_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="kmsd", description="A key management service behind a Unix socket.")
    parser.add_argument("--version", action="version", version=f"kmsd {kmsd.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    dev = verbs.add_parser(
        "dev",
        help="run with everything embedded in one directory",
        description="Run in the foreground with token, store, audit trail and socket under DIR. With a COMMAND: run it "
        "with KMSD_SOCKET set and stop with its exit code.",
    )
    dev.add_argument("--share", action="store_true", help="let other users connect")
    dev.add_argument("--config", type=Path, metavar="FILE", help="settings, as TOML")
    dev.add_argument(
        "--accept-changes",
        action="store_true",
        help="take the store and the audit trail as they are, although kmsd did not leave them so; on record",
    )
    dev.add_argument("directory", type=Path, metavar="DIR", help="made if missing; only its owner may enter")
    serve = verbs.add_parser(
        "serve",
        help="run as the daemon of this host",
        description="Run in the foreground as the settings say. Started as root, it becomes the service's own user.",
    )
    serve.add_argument(
        "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="settings, as TOML (default: %(default)s)"
    )
    init = verbs.add_parser(
        "init",
        help="set up this host (as root)",
        description="Make user, groups, directories, token, store and settings, as far as they are missing, and start "
        "kmsd. Changes nothing that is there, so it can be run again. Without --module it makes a SoftHSM2 token.",
    )
    init.add_argument("--non-interactive", action="store_true", help="ask nothing")
    init.add_argument("--recovery", choices=_RECOVERIES, help="what opens the keys when the token is lost")
    init.add_argument("--shares", type=int, metavar="N", help="how many shares of a recovery key are made (3)")
    init.add_argument("--threshold", type=int, metavar="M", help="how many of them together open the keys (2)")
    init.add_argument(
        "--share-directory", type=Path, metavar="DIR", help="write each share into a file there, instead of showing it"
    )
    init.add_argument("--module", metavar="PATH", help="the PKCS#11 library of a token that is set up")
    init.add_argument("--token-label", metavar="LABEL", help="which of its tokens")
    init.add_argument("--pin-file", metavar="FILE", help="a file with the token's PIN, - for standard input")
    init.add_argument(
        "--module-environment",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=_assignment,
        help="a variable that the library reads; may be repeated",
    )
    for name, what in (("reads", "reads"), ("writes", "writes, beside what it reads")):
        init.add_argument(
            f"--module-{name}",
            metavar="PATH",
            action="append",
            default=[],
            help=f"a file, folder or device that the library {what}; may be repeated",
        )
    init.add_argument(
        "--module-connects",
        choices=["nothing", "local", "network"],
        default="nothing",
        help="what the library connects to: Unix sockets of this host, or the network as well (%(default)s)",
    )
    init.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="settings (%(default)s)")
    check = verbs.add_parser(
        "check-config",
        help="look for mistakes in the settings",
        description="Check the settings, and the users, folders and policies that they name, without the token and "
        "without a change. Exit code 0: all is well, 1: not everything they name is, 2: they are not valid.",
    )
    check.add_argument("file", type=Path, nargs="?", default=DEFAULT_PATH, metavar="FILE", help="(%(default)s)")
    repair = verbs.add_parser(
        "audit-repair",
        help="begin a new chain where the audit trail is broken",
        description="Set a broken file of the audit trail aside, which is kept as it is, and begin a new chain that "
        "refers to it. kmsd must not run. Afterwards an administrator has to accept it: kms unseal --accept-changes.",
    )
    place = repair.add_mutually_exclusive_group()
    place.add_argument(
        "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="settings that name the trail (%(default)s)"
    )
    place.add_argument("--dev", type=Path, metavar="DIR", help="the trail of kmsd dev DIR")
    repair.add_argument("--yes", action="store_true", help="do not ask")
    upgrade = verbs.add_parser(
        "upgrade",
        help="bring the store to the schema of this version",
        description="Upgrade the store that an older kmsd made, while kmsd does not run. A copy of it stays beside it. "
        "Changes nothing if there is nothing to upgrade.",
    )
    which = upgrade.add_mutually_exclusive_group()
    which.add_argument("--config", type=Path, metavar="FILE", help=f"settings, as TOML ({DEFAULT_PATH})")
    which.add_argument("--dev", type=Path, metavar="DIR", help="the directory of `kmsd dev` instead")
    return parser


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def _init(options: argparse.Namespace) -> int:
    from kmsd.commands.init import Choices, run_init  # noqa: PLC0415 - it loads most of the daemon
    from kmsd.commands.recovery_choice import RecoveryOptions  # noqa: PLC0415 - as above

    return run_init(
        Choices(
            settings=options.config,
            interactive=not options.non_interactive and sys.stdin.isatty(),
            recovery=RecoveryOptions(
                options.recovery,
                threshold=options.threshold,
                shares=options.shares,
                directory=options.share_directory.absolute() if options.share_directory is not None else None,
            ),
            module=options.module,
            token_label=options.token_label,
            pin_file=options.pin_file,
            environment=tuple(options.module_environment),
            readable_paths=tuple(options.module_reads),
            writable_paths=tuple(options.module_writes),
            connect=options.module_connects,
        )
    )


def _check_config(path: Path) -> int:
    from kmsd.commands.check_config import run_check_config  # noqa: PLC0415 - it reads policies

    return run_check_config(path)


def _audit_repair(options: argparse.Namespace) -> int:
    from kmsd.commands.audit_repair import run_audit_repair  # noqa: PLC0415 - no other verb needs it

    trail = options.dev / "audit.log" if options.dev else Path(load_config(options.config).paths.audit)
    return run_audit_repair(trail.absolute(), confirmed=options.yes)


def _upgrade(settings: Path | None, development: Path | None) -> int:
    from kmsd.commands.upgrade import run_upgrade  # noqa: PLC0415 - rarely needed

    return run_upgrade(Config() if development else load_config(settings or DEFAULT_PATH), development)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kmsd` and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Behind -- stands somebody else's command line, which is not argparse's to read.
    command = words[words.index("--") + 1 :] if "--" in words else []
    options = make_parser().parse_args(words[: words.index("--")] if "--" in words else words)
    try:
        if options.verb == "init":
            return _init(options)
        if options.verb == "check-config":
            return _check_config(options.file)
        if options.verb == "audit-repair":
            return _audit_repair(options)
        if options.verb == "upgrade":
            return _upgrade(options.config, options.dev)
        config = load_config(options.config) if options.config else Config()
        if options.verb == "serve":
            return run_serve(config)
        return run_dev(
            options.directory,
            config,
            shared=options.share,
            accepts_changes=options.accept_changes,
            command=command,
        )
    except ConfigurationError as error:
        sys.stderr.write(f"kmsd: error: {error}\n")
        return _EXIT_USAGE
    except KeyboardInterrupt:  # before the daemon was far enough to stop in good order
        return _EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
