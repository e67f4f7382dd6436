"""`kmsd upgrade`: brings the store to the schema of this kmsd, while no daemon runs."""

from __future__ import annotations

import os
from pathlib import Path

from kmsd.commands.failures import exit_code_of
from kmsd.config import Config
from kmsd.processes.privileges import become, find_account


def run_upgrade(config: Config, development: Path | None) -> int:
    """Upgrade the host's store, or that of `kmsd dev` in a directory; return the exit code."""
    return exit_code_of(lambda: _upgrade(config, development))


def _upgrade(config: Config, development: Path | None) -> None:
    from kmsd.server.deployment import development_store_path, store_path  # noqa: PLC0415 - both load SQLAlchemy
    from kmsd.store.migrations.stamp import SCHEMA_VERSION  # noqa: PLC0415
    from kmsd.store.migrations.upgrade import upgrade  # noqa: PLC0415

    path = store_path(config) if development is None else development_store_path(development.absolute())
    if development is None and os.getuid() == 0:
        # What it makes has to belong to the daemon's user; and what others may have written is not root's to read.
        become(find_account(config.user))
    if not path.exists():
        print(f"There is no store {path}: nothing to upgrade.")
        return
    done = upgrade(path)
    if done.copy is None:
        print(f"The store {path} has schema {done.found} already: nothing to upgrade.")
    else:
        print(f"Upgraded the store {path} from schema {done.found} to {SCHEMA_VERSION}.")
        print(f"As it was before, for an older kmsd: {done.copy}")
