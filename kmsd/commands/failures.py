"""What keeps the daemon from running, said in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

_EXIT_FAILED = 1


def exit_code_of(run: Callable[[], None]) -> int:
    """Call `run` and return the exit code; what it was foreseen to raise is said."""
    reason = failure_of(run)
    if reason is None:
        return 0
    sys.stderr.write(f"kmsd: error: {reason}\n")
    return _EXIT_FAILED


def failure_of(run: Callable[[], None]) -> str | None:
    """Call `run`, which runs the daemon or parts of it; return what it was foreseen to raise in words, or None.

    Everything else passes: it is a fault of the program, whose traceback is wanted.
    """
    # Imported here: a command that only looks at files needs none of it.
    from kmsd.access.host import HostPolicyError  # noqa: PLC0415
    from kmsd.api.errors import KmsError  # noqa: PLC0415
    from kmsd.audit.succession import AuditBrokenError  # noqa: PLC0415
    from kmsd.backup.header import BackupError  # noqa: PLC0415
    from kmsd.commands.dev import DirectoryError  # noqa: PLC0415
    from kmsd.commands.steps import SetupError  # noqa: PLC0415
    from kmsd.config import ConfigurationError  # noqa: PLC0415
    from kmsd.hsm.root import RootError  # noqa: PLC0415
    from kmsd.identity.peer import IncompleteUidMapError  # noqa: PLC0415
    from kmsd.memory.mapping import SecretMemoryUnavailableError  # noqa: PLC0415
    from kmsd.processes.confinement import ConfinementError  # noqa: PLC0415
    from kmsd.processes.privileges import PrivilegesError  # noqa: PLC0415
    from kmsd.server.activation import ActivationError  # noqa: PLC0415
    from kmsd.server.listener import SocketInUseError  # noqa: PLC0415
    from kmsd.server.notify import NotifyError  # noqa: PLC0415
    from kmsd.store.base import StoreError  # noqa: PLC0415

    try:
        run()
    except AuditBrokenError as error:
        return f"{error}. Find out why; kmsd audit-repair keeps the file and begins a new chain"
    except (
        ActivationError,
        BackupError,
        ConfigurationError,
        ConfinementError,
        DirectoryError,
        HostPolicyError,
        IncompleteUidMapError,
        KmsError,
        NotifyError,
        PrivilegesError,
        RootError,
        SecretMemoryUnavailableError,
        SetupError,
        SocketInUseError,
        StoreError,
    ) as error:
        return str(error)
    except OSError as error:
        # Without an errno it is our own words (what to install); else the system's, about a file it names.
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return reason or str(error)
    return None
