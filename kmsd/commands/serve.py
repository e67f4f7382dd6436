"""`kmsd serve`: the daemon of a host, as its settings file says.

What needs root comes first, as root may have started it: the sockets, unless systemd passed them. Then it becomes the
service's own user, for good, and only then anything is read that others may have written.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from kmsd.commands.failures import exit_code_of
from kmsd.config import Config, ConfigurationError
from kmsd.processes.privileges import Account, become, find_account

if TYPE_CHECKING:
    from kmsd.server.activation import SocketPaths, Sockets

# Policy decides who may do what, not the mode of the socket (DESIGN 6).
_SOCKET_MODE = 0o666
_DIRECTORY_MODE = 0o755


def run_serve(config: Config) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. Raises ConfigurationError."""
    if not config.hsm.module:
        raise ConfigurationError("hsm.module names no PKCS#11 library: run `kmsd init`, or set it")
    return exit_code_of(lambda: _serve(config))


def _serve(config: Config) -> None:
    from kmsd.identity.peer import check_identity_map  # noqa: PLC0415 - only who serves needs any of these
    from kmsd.server.activation import SocketPaths, inherited_sockets  # noqa: PLC0415
    from kmsd.server.daemon import run_daemon  # noqa: PLC0415
    from kmsd.server.deployment import host  # noqa: PLC0415
    from kmsd.server.notify import Notifier  # noqa: PLC0415

    # Until the daemon can read its policy anew, it must not end because somebody asks for that.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    check_identity_map()
    os.chdir("/")
    os.umask(0o077)
    # First: what was announced and is not there must not be mistaken for what is opened here.
    sockets = inherited_sockets(os.environ)
    notifier = Notifier.from_environment(os.environ)
    account = find_account(config.user) if os.getuid() == 0 else None
    owned = None
    if sockets is None:
        # Whoever made the sockets takes their names away.
        owned = SocketPaths(Path(config.paths.socket), Path(config.paths.credential_socket))
        sockets = _bind(owned, account)
    if account is not None:
        become(account)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    run_daemon(
        host(
            config,
            sockets,
            owned=owned,
            credentials=Path(directory) if directory else None,
            notifier=notifier,
        )
    )


def _bind(paths: SocketPaths, account: Account | None) -> Sockets:
    from kmsd.server.listener import bind_all  # noqa: PLC0415 - as above

    for folder in {path.parent for path in paths}:
        if account is not None and not folder.exists():
            folder.mkdir(_DIRECTORY_MODE)
            folder.chmod(_DIRECTORY_MODE)  # whatever the umask
            # Its own, so that it can take the sockets away when it stops.
            os.chown(folder, account.uid, account.gid)
    return bind_all(paths, _SOCKET_MODE)
