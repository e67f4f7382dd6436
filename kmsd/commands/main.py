"""`kmsd`: the command that runs the daemon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import kmsd
from kmsd.commands.dev import run_dev
from kmsd.commands.serve import run_serve
from kmsd.config import DEFAULT_PATH, Config, ConfigurationError, load_config

if TYPE_CHECKING:
    from kmsd.commands.backup_files import Sources
    from kmsd.commands.init import Choices
    from kmsd.commands.recovery_choice import RecoveryOptions

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
    dev.add_argument(
        "--recovery-shares",
        type=Path,
        metavar="FOLDER",
        help="give a new DIR a recovery key, and write its shares into files in FOLDER: any 2 of 3 open it",
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
    _add_token(init)
    init.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="settings (%(default)s)")
    _add_backup(verbs)
    _add_restore(verbs)
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


def _add_token(parser: argparse.ArgumentParser) -> None:
    """Declare which token a host gets, instead of one that is made."""
    parser.add_argument("--module", metavar="PATH", help="the PKCS#11 library of a token that is set up")
    parser.add_argument("--token-label", metavar="LABEL", help="which of its tokens")
    parser.add_argument("--pin-file", metavar="FILE", help="a file with the token's PIN, - for standard input")
    parser.add_argument(
        "--module-environment",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=_assignment,
        help="a variable that the library reads; may be repeated",
    )
    for name, what in (("reads", "reads"), ("writes", "writes, beside what it reads")):
        parser.add_argument(
            f"--module-{name}",
            metavar="PATH",
            action="append",
            default=[],
            help=f"a file, folder or device that the library {what}; may be repeated",
        )
    parser.add_argument(
        "--module-connects",
        choices=["nothing", "local", "network"],
        default="nothing",
        help="what the library connects to: Unix sockets of this host, or the network as well (%(default)s)",
    )


def _add_backup(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    backup = verbs.add_parser(
        "backup",
        help="back up all keys of a running kmsd (as an administrator)",
        description="Have the running kmsd write a backup of all keys to FILE (- for standard output), which appears "
        "when it is complete and on the disk. It opens only with the host's token, or with recovery shares. With "
        "--verify, check that FILE is whole and opens, and print what is in it, without a running kmsd.",
    )
    backup.add_argument("file", metavar="FILE")
    backup.add_argument("--force", action="store_true", help="replace FILE if it is there")
    backup.add_argument("--socket", type=Path, metavar="PATH", help="the daemon's socket; otherwise as kms finds it")
    backup.add_argument("--verify", action="store_true", help="check the backup in FILE instead of making one")
    _add_opening(backup)


def _add_restore(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    restore = verbs.add_parser(
        "restore",
        help="make a host's keys out of a backup",
        description="Make the store of this host out of the backup in FILE. There must be none; nothing is replaced. "
        "The backup opens with the token that it was made with, or with recovery shares. The account, the region and "
        "all key ARNs are those of the backup. As root, whatever else `kmsd init` makes is made, too.",
    )
    restore.add_argument("file", type=Path, metavar="FILE")
    restore.add_argument(
        "--token",
        action="store_true",
        help="wrap the keys by the token that is there now, made if it is kmsd's own and missing; needs shares",
    )
    _add_opening(restore)
    _add_token(restore)


def _add_opening(parser: argparse.ArgumentParser) -> None:
    """Declare who opens a backup."""
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="the host's settings (%(default)s)"
    )
    place.add_argument("--dev", type=Path, metavar="DIR", help="the directory of a `kmsd dev` instead of the host")
    parser.add_argument("--share", action="store_true", help="ask for recovery shares")
    parser.add_argument(
        "--share-file",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="a file with one recovery share; once for each share",
    )


def _sources(options: argparse.Namespace) -> Sources:
    from kmsd.commands.backup_files import Sources  # noqa: PLC0415 - it loads most of the daemon

    return Sources(settings=options.config, dev=options.dev, typed=options.share, share_files=tuple(options.share_file))


def _backup(options: argparse.Namespace) -> int:
    opens = options.share or options.share_file or options.config != DEFAULT_PATH
    if options.verify and (options.force or options.socket is not None):
        return _refuse("--force and --socket are for making a backup, and --verify makes none")
    if not options.verify and opens:
        return _refuse("--share, --share-file and --config are for opening a backup: they belong to --verify")
    if options.verify:
        from kmsd.commands.backup_files import run_verify  # noqa: PLC0415 - as in _sources

        return run_verify(Path(options.file), _sources(options))
    from kmsd.commands.backup import run_backup  # noqa: PLC0415 - it loads the client

    if options.dev is not None and options.socket is not None:
        return _refuse("--dev and --socket name two daemons: leave one of them out")
    socket = options.socket if options.dev is None else options.dev / "kmsd.sock"
    return run_backup(options.file, socket=socket, force=options.force)


def _refuse(reason: str) -> int:
    sys.stderr.write(f"kmsd: error: {reason}\n")
    return _EXIT_USAGE


def _restore(options: argparse.Namespace) -> int:
    from kmsd.commands.backup_files import run_restore  # noqa: PLC0415 - as in _sources
    from kmsd.commands.recovery_choice import RecoveryOptions  # noqa: PLC0415 - as above

    # What the backup has of recovery is kept, so that nothing is to be chosen.
    choices = _choices(options, RecoveryOptions("none", None, None, None), interactive=sys.stdin.isatty())
    return run_restore(options.file, _sources(options), choices, to_token=options.token)


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def _init(options: argparse.Namespace) -> int:
    from kmsd.commands.init import run_init  # noqa: PLC0415 - it loads most of the daemon
    from kmsd.commands.recovery_choice import RecoveryOptions  # noqa: PLC0415 - as above

    recovery = RecoveryOptions(
        options.recovery,
        threshold=options.threshold,
        shares=options.shares,
        directory=options.share_directory.absolute() if options.share_directory is not None else None,
    )
    return run_init(_choices(options, recovery, interactive=not options.non_interactive and sys.stdin.isatty()))


def _choices(options: argparse.Namespace, recovery: RecoveryOptions, *, interactive: bool) -> Choices:
    from kmsd.commands.init import Choices  # noqa: PLC0415 - as above

    return Choices(
        settings=options.config,
        interactive=interactive,
        recovery=recovery,
        module=options.module,
        token_label=options.token_label,
        pin_file=options.pin_file,
        environment=tuple(options.module_environment),
        readable_paths=tuple(options.module_reads),
        writable_paths=tuple(options.module_writes),
        connect=options.module_connects,
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
        if options.verb == "backup":
            return _backup(options)
        if options.verb == "restore":
            return _restore(options)
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
            recovery_shares=options.recovery_shares,
            command=command,
        )
    except ConfigurationError as error:
        sys.stderr.write(f"kmsd: error: {error}\n")
        return _EXIT_USAGE
    except KeyboardInterrupt:  # before the daemon was far enough to stop in good order
        return _EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
