"""What a command decides about the daemon that is to run: where things are, who may come, which token it has."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from kmsd.config import Config
from kmsd.hsm.conversation import TokenConfig
from kmsd.hsm.pin import CredentialPin, FilePin, PinSource
from kmsd.identity.principals import Administrators
from kmsd.processes.zygote import Zygote
from kmsd.server.activation import CLIENTS, CREDENTIALS, SocketPaths, Sockets
from kmsd.server.notify import Notifier

_STORE = "store.sqlite"
# Of the token that `kmsd dev` makes.
DEVELOPMENT_LABEL = "kmsd-dev"


@dataclass(frozen=True)
class Token:
    """How to use the token; without a `pin` an administrator has to bring it."""

    config: TokenConfig
    pin: PinSource | None


def _nothing() -> None:
    return


def _remove(paths: SocketPaths) -> None:
    for path in paths:
        # Where the directory is root's, the next start replaces it.
        with suppress(FileNotFoundError, PermissionError):
            path.unlink()


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A daemon that is to run.

    `only_uid` is the one uid that is accepted, or None for all. `open_sockets` returns the listening sockets and
    `close_sockets` takes their names away; without them the daemon makes what a first start makes, keys included, and
    ends. `module` is the token's PKCS#11 library, and `find_token` may make the token. `ready` is called once the
    socket accepts. With `serves_sealed` it serves although it could not be unsealed at the start; else it does not
    start then. `readable` and `writable` folders are what the daemon may open, beside its own code, once it runs;
    `token_writable` is what a token job may write, and `token_variables` the variables that may be set for its module,
    beside what the settings say. `notifier` tells the service manager. `recovery_key` gives the key by which a store
    that is yet to be made can be unsealed without the token. With `accepts_changes` records that are not as kmsd left
    them are taken as they are; only where it does not serve sealed, and so nobody can ask for it. `founds`: it may
    make the first store; else one that is missing is not taken for one that never was. `log_is_kept`: the service log
    is no terminal that somebody works at, but goes where it is kept.
    Where there is a `host_policy` directory, SIGHUP has it read anew.
    """

    config: Config
    store_path: Path
    audit_path: Path
    host_policy: Path | None
    administrators: Administrators
    only_uid: int | None
    open_sockets: Callable[[], Sockets] | None
    close_sockets: Callable[[], None]
    module: Path
    find_token: Callable[[Zygote], Awaitable[Token]]
    serves_sealed: bool
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    token_writable: tuple[Path, ...]
    token_variables: tuple[str, ...] = ()
    ready: Callable[[], None] = _nothing
    notifier: Notifier = field(default_factory=Notifier)
    recovery_key: Callable[[], memoryview] | None = None
    accepts_changes: bool = False
    founds: bool = False
    log_is_kept: bool = True


def development(
    directory: Path,
    config: Config,
    *,
    shared: bool,
    only_uid: int | None,
    ready: Callable[[], None],
    accepts_changes: bool = False,
) -> Deployment:
    """Return a daemon with everything embedded in one directory (`kmsd dev`); raises OSError without a SoftHSM2."""
    from kmsd.hsm.softhsm import PIN_NAME, find_module, make_token  # noqa: PLC0415 - a host has a token of its own

    paths = SocketPaths(directory / CLIENTS, directory / CREDENTIALS)

    def open_sockets() -> Sockets:
        from kmsd.server.listener import bind_all  # noqa: PLC0415 - only the daemon's own process needs it

        return bind_all(paths, 0o666 if shared else 0o600)

    async def find_token(zygote: Zygote) -> Token:
        token = await make_token(zygote, directory / "token", label=DEVELOPMENT_LABEL)
        return Token(token, FilePin(directory / "token" / PIN_NAME))

    return Deployment(
        config=config,
        store_path=development_store_path(directory),
        audit_path=directory / "audit.log",
        host_policy=None,
        administrators=Administrators(uids=frozenset({os.getuid()}), groups=("kms-admin",)),
        only_uid=only_uid,
        module=find_module(),
        open_sockets=open_sockets,
        close_sockets=partial(_remove, paths),
        find_token=find_token,
        serves_sealed=False,
        readable=(),
        writable=(directory,),
        token_writable=(directory / "token",),
        token_variables=("SOFTHSM2_CONF",),
        ready=ready,
        accepts_changes=accepts_changes,
        founds=True,
        log_is_kept=False,
    )


def host(
    config: Config, sockets: Sockets, *, owned: SocketPaths | None, credentials: Path | None, notifier: Notifier
) -> Deployment:
    """Return the daemon of a host (`kmsd serve`), which serves the listening `sockets`.

    `owned` are their paths if this process made them; None for sockets that were passed on and stay. `credentials`
    is the directory of systemd's credentials.
    """
    kind, _, value = config.hsm.pin.partition(":")
    # Folders, because files in them may be replaced while the daemon runs.
    pins = [Path(value).parent] if kind == "file" else [credentials] if credentials is not None else []
    return _of_host(
        config,
        pin_source(config.hsm.pin, credentials),
        open_sockets=lambda: sockets,
        close_sockets=_nothing if owned is None else partial(_remove, owned),
        serves_sealed=True,
        readable=pins,
        writable=[*{path.parent for path in owned}] if owned is not None else [],
        notifier=notifier,
    )


def founding(config: Config, pin: PinSource, recovery_key: Callable[[], memoryview] | None = None) -> Deployment:
    """Return a daemon of a host that makes its store, account, keys and audit trail, and ends (`kmsd init`)."""
    deployment = _of_host(
        config,
        pin,
        open_sockets=None,
        close_sockets=_nothing,
        serves_sealed=False,
        readable=(),
        writable=(),
        notifier=Notifier(),
    )
    return replace(deployment, recovery_key=recovery_key, founds=True)


def _of_host(
    config: Config,
    pin: PinSource | None,
    *,
    open_sockets: Callable[[], Sockets] | None,
    close_sockets: Callable[[], None],
    serves_sealed: bool,
    readable: Sequence[Path],
    writable: Sequence[Path],
    notifier: Notifier,
) -> Deployment:
    async def find_token(zygote: Zygote) -> Token:  # noqa: ARG001 - `development` makes it by the zygote
        return Token(token_config(config), pin)

    policies, audit = Path(config.paths.policies), Path(config.paths.audit)
    return Deployment(
        config=config,
        store_path=store_path(config),
        audit_path=audit,
        host_policy=policies,
        administrators=Administrators(uids=frozenset(config.administrators.uids), groups=config.administrators.groups),
        only_uid=None,
        module=Path(config.hsm.module),
        open_sockets=open_sockets,
        close_sockets=close_sockets,
        find_token=find_token,
        serves_sealed=serves_sealed,
        readable=(policies, *readable),
        writable=(Path(config.paths.state), audit.parent, *writable),
        token_writable=(),
        notifier=notifier,
    )


def store_path(config: Config) -> Path:
    """Return where a host's daemon has its store."""
    return Path(config.paths.state, _STORE)


def development_store_path(directory: Path) -> Path:
    """Return where the daemon of `kmsd dev` has its store."""
    return directory / _STORE


def token_config(config: Config) -> TokenConfig:
    """Return the token that the settings name."""
    hsm = config.hsm
    return TokenConfig(
        module=hsm.module,
        token_label=hsm.token_label,
        root_key_label=hsm.root_key_label,
        environment=tuple(sorted(hsm.environment.items())),
    )


def pin_source(setting: str, credentials: Path | None) -> PinSource | None:
    """Return the source of the PIN that the setting `hsm.pin` stands for, None if an administrator brings it."""
    kind, _, value = setting.partition(":")
    if kind == "credential":
        return CredentialPin(value, credentials)
    return FilePin(Path(value)) if kind == "file" else None
