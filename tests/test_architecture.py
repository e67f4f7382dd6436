"""The project's structure is a set of rules, and these tests hold them (DESIGN 2 and 3).

Rules about imports are read from the source with `ast`, so that an import nobody has run yet counts as well.
"""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"kmsd": ROOT / "kmsd", "kmsd_client": ROOT / "client" / "kmsd_client"}

# Above this a module holds more than one concept.
MAX_LINES = 400
GENERATED = {"kmsd_client._operations"}

# Names that say nothing about what is inside.
DRAWERS = {"util", "utils", "helper", "helpers", "common", "misc"}

# From low to high. An import may only go to a lower level; within level 1 only where CROSSINGS says so.
LEVELS = {
    "kmsd.api": 0.0,
    "kmsd.config": 0.5,
    "kmsd.logs": 0.5,
    "kmsd.metrics": 0.5,
    "kmsd.wire": 1.0,
    "kmsd.memory": 1.0,
    "kmsd.processes": 1.0,
    "kmsd.identity": 1.0,
    "kmsd.access": 1.0,
    "kmsd.hsm": 1.0,
    "kmsd.recovery": 1.0,
    "kmsd.material": 1.0,
    "kmsd.store": 1.0,
    "kmsd.audit": 1.0,
    "kmsd.envelope": 1.0,
    "kmsd.events": 1.0,
    "kmsd.backup": 1.0,
    "kmsd.service": 2.0,
    "kmsd.server": 3.0,
    "kmsd.server.daemon": 4.0,
    "kmsd.commands": 4.5,
}
# (importing module or package, what it may import beside lower levels)
CROSSINGS = (
    ("kmsd", "kmsd.memory"),
    ("kmsd.hsm", "kmsd.processes"),
    ("kmsd.recovery", "kmsd.processes"),
    ("kmsd.envelope.pool", "kmsd.processes"),
    ("kmsd.access", "kmsd.identity.principals"),
    ("kmsd.material.hierarchy", "kmsd.hsm.root"),
    ("kmsd.material.versions", "kmsd.store.rows"),
)
# Commands of kmsd's that are clients of a daemon that runs: only it may read its store, and they ask it to.
CLIENTS_OF_THE_DAEMON = ("kmsd.commands.backup",)
# What of the daemon's source the client may use: the contract, and pure modules that work off-line.
CLIENT_MAY_IMPORT = (
    "kmsd.api",
    "kmsd.wire",
    "kmsd.envelope.header",
    "kmsd.envelope.frames",
    "kmsd.envelope.conversation",  # the datagrams between client and worker
    "kmsd.audit.anchors",
    "kmsd.audit.chain",
    "kmsd.audit.checkpoint",
    "kmsd.audit.public_key",
    "kmsd.audit.trail_check",
    "kmsd.audit.trail_files",
    "kmsd.audit.verify",
    "kmsd.access.policy",
    "kmsd.recovery.shares",  # a share is checked where it is typed
    "kmsd.identity.principals",  # `kms policy check` looks names up on its host as the daemon does
    "kmsd.identity.peer",  # the same kernel facts, asked about the other end: is this server one that may hold keys?
)

# Packages from outside, and ctypes: where each may be imported.
OWNERS = {
    "msgspec": ("kmsd", "kmsd_client"),
    "cryptography": ("kmsd", "kmsd_client"),
    "msgpack": ("kmsd.wire.codec",),
    "pkcs11": ("kmsd.hsm",),
    "shamir_mnemonic": ("kmsd.recovery.shares",),
    "sqlalchemy": ("kmsd.store",),
    "alembic": ("kmsd.store",),
    "structlog": ("kmsd.logs",),
    "prometheus_client": ("kmsd.metrics",),
    "uvloop": ("kmsd.server.daemon",),
    "rich": ("kmsd_client.cli",),
    "shtab": ("kmsd_client.cli",),
    # In hsm only for C_InitToken, which python-pkcs11 does not have.
    "ctypes": ("kmsd.memory", "kmsd.processes", "kmsd.identity", "kmsd.hsm.initialization"),
}

# Bytes in, bytes out: these modules know no files, sockets, threads or loops.
PURE = (
    "kmsd.wire",
    "kmsd.envelope.header",
    "kmsd.envelope.frames",
    "kmsd.envelope.conversation",
    "kmsd.audit.anchors",
    "kmsd.audit.chain",
    "kmsd.audit.checkpoint",
    "kmsd.audit.public_key",
    "kmsd.audit.reduced",
    "kmsd.audit.reduced_check",
    "kmsd.audit.repair",
    "kmsd.audit.signatures",
    "kmsd.audit.trail_check",
    "kmsd.audit.trail_files",
    "kmsd.audit.verify",
    "kmsd.access.decision",
    "kmsd.recovery.shares",
    "kmsd.backup",
)
IMPURE = {"asyncio", "multiprocessing", "select", "selectors", "socket", "subprocess", "threading"}

# Only the zygote forks. `kmsd dev -- COMMAND` is the other one: it runs what the user asked for, and holds no keys.
MAY_START_PROCESSES = ("kmsd.processes", "kmsd.commands")
STARTS_PROCESSES = {"subprocess", "multiprocessing", "pty"}
FORKING_CALLS = {"fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen"}

# Catching everything hides mistakes. One place in the daemon and one in the file worker turn them into replies.
MAY_CATCH_ALL = {"kmsd.service.pipeline", "kmsd.envelope.worker"}

# What makes a command slow to start (DESIGN 14: asyncio 35 ms, rich 34 ms), or belongs to the daemon.
SLOW_TO_IMPORT = {"asyncio", "rich", "sqlalchemy", "alembic", "structlog", "uvloop", "pkcs11"}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether that happens when the importing module is imported."""

    importer: str
    target: str
    line: int
    at_import: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def tree_of(module: str) -> ast.Module:
    path = modules()[module]
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def walk(node: ast.AST, *, at_import: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that exists at run time, and whether it runs when the module is imported."""
    yield node, at_import
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        at_import = False
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield from walk(child, at_import=at_import)


def targets_of(module: str, node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}:{node.lineno}: imports are absolute"
        base = node.module or ""
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield whole if whole in modules() else base


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    return tuple(
        Import(module, target, node.lineno, at_import)
        for node, at_import in walk(tree_of(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in targets_of(module, node)
    )


def all_imports() -> Iterator[Import]:
    for module in modules():
        yield from imports_of(module)


def level_of(module: str) -> float | None:
    """The level of a module's nearest listed ancestor; None: it is listed nowhere."""
    while module:
        if module in LEVELS:
            return LEVELS[module]
        module = module.rpartition(".")[0]
    return None


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def may_import(importer: str, target: str) -> bool:
    if target == "kmsd" or package_of(importer) == package_of(target):
        return True
    low, high = level_of(target), level_of(importer)
    if low is None or high is None:
        return False
    return low < high or any(inside(importer, who) and inside(target, what) for who, what in CROSSINGS)


def test_there_is_something_to_check() -> None:
    """The rules below look at the whole source, not at an empty folder."""
    assert {"kmsd.api.operation", "kmsd.api.errors"} <= modules().keys()


def test_every_module_belongs_to_a_level() -> None:
    """A new package has to be given its place before anything can import it."""
    homeless = [name for name in modules() if inside(name, "kmsd") and name != "kmsd" and level_of(name) is None]

    assert homeless == []


def test_imports_go_downwards() -> None:
    """A module imports only from lower levels, and beside itself only where the rules name the crossing."""
    wrong = [
        str(found)
        for found in all_imports()
        if inside(found.importer, "kmsd")
        and (inside(found.target, "kmsd_client") or inside(found.target, "kmsd"))
        and not (inside(found.target, "kmsd_client") and found.importer in CLIENTS_OF_THE_DAEMON)
        and not may_import(found.importer, found.target)
    ]

    assert wrong == []


def test_the_client_uses_only_the_contract_and_pure_modules() -> None:
    """Whatever the client imports from the daemon's source is the contract or works off-line."""
    wrong = [
        str(found)
        for found in all_imports()
        if inside(found.importer, "kmsd_client")
        and inside(found.target, "kmsd")
        and found.target != "kmsd"
        and not any(inside(found.target, allowed) for allowed in CLIENT_MAY_IMPORT)
    ]

    assert wrong == []


def test_each_foreign_package_has_one_owner() -> None:
    """A package from outside is imported only by its owner, and only packages that have an owner are imported."""
    wrong = [
        str(found)
        for found in all_imports()
        for top in [found.target.partition(".")[0]]
        if (top in OWNERS or top not in sys.stdlib_module_names)
        and top not in SOURCES
        and top != "__future__"
        and not any(inside(found.importer, owner) for owner in OWNERS.get(top, ()))
    ]

    assert wrong == []


def test_sans_io_modules_know_no_io() -> None:
    """The protocol, the formats, the chain and the decision take bytes and values, and nothing else."""
    wrong = [
        str(found)
        for found in all_imports()
        if any(inside(found.importer, pure) for pure in PURE) and found.target.partition(".")[0] in IMPURE
    ]

    assert wrong == []


def test_modules_hold_one_concept() -> None:
    """No module is longer than the limit, unless a program writes it."""
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}

    assert {name: count for name, count in lengths.items() if count > MAX_LINES and name not in GENERATED} == {}


def test_no_module_is_a_drawer() -> None:
    """A module's name says what it is about, in the tests as well."""
    paths = [*modules().values(), *(ROOT / "tests").rglob("*.py")]

    assert [str(path) for path in paths if DRAWERS & set(path.relative_to(ROOT).with_suffix("").parts)] == []


def test_every_module_says_what_it_is() -> None:
    """Every module that has code opens with a docstring."""
    assert [name for name in modules() if tree_of(name).body and not ast.get_docstring(tree_of(name))] == []


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes any exception and does not pass it on."""
    caught = handler.type
    named = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    everything = any(name is None or ast.unparse(name) in {"Exception", "BaseException"} for name in named)
    last = handler.body[-1]
    return everything and not (isinstance(last, ast.Raise) and last.exc is None)


def test_only_two_places_catch_everything() -> None:
    """Only the pipeline and the file worker turn an unforeseen exception into a reply."""
    found = [
        f"{name}:{node.lineno}"
        for name in modules()
        for node in ast.walk(tree_of(name))
        if name not in MAY_CATCH_ALL and isinstance(node, ast.ExceptHandler) and catches_everything(node)
    ]

    assert found == []


def test_only_the_zygote_starts_processes() -> None:
    """Nothing that may hold keys forks or executes anything."""
    wrong = [
        str(found)
        for found in all_imports()
        if found.target.partition(".")[0] in STARTS_PROCESSES
        and inside(found.importer, "kmsd")
        and not any(inside(found.importer, allowed) for allowed in MAY_START_PROCESSES)
    ]
    for name in modules():
        if inside(name, "kmsd") and not any(inside(name, allowed) for allowed in MAY_START_PROCESSES):
            for node in ast.walk(tree_of(name)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                    called = node.attr
                    if called in FORKING_CALLS or called.startswith(("exec", "spawn")):
                        wrong.append(f"{name}:{node.lineno} uses os.{called}")

    assert wrong == []


def test_every_operation_has_one_handler() -> None:
    """What is declared is served, and nothing is served that is not declared."""
    api = importlib.import_module("kmsd.api")
    service = pytest.importorskip("kmsd.service")
    declared = [operation.name for operation in api.OPERATIONS]
    handled = [
        operation.name
        for info in pkgutil.iter_modules(service.__path__, "kmsd.service.")
        for operation in getattr(importlib.import_module(info.name), "HANDLERS", {})
    ]

    assert sorted(declared) == sorted(handled)


def loaded_by_the_command_line() -> Iterator[Import]:
    """Imports that an ordinary `kms` command may run.

    A command's own module imports what it needs inside functions, and those count; what it imports so is followed
    only through what runs at import. Names of foreign packages inside functions do not count: that is where the lazy
    ones (rich, for a progress bar on a terminal) belong.
    """
    waiting = [name for name in modules() if inside(name, "kmsd_client.cli")]
    seen = set(waiting)
    while waiting:
        for found in imports_of(waiting.pop()):
            own = found.target in modules()
            if found.at_import and not own:
                yield found
            parents = (
                [found.target.rsplit(".", depth)[0] for depth in range(found.target.count(".") + 1)] if own else []
            )
            if found.at_import or inside(found.importer, "kmsd_client.cli"):
                new = [name for name in parents if name not in seen and name in modules()]
                seen.update(new)
                waiting += new


def test_the_command_line_imports_nothing_slow() -> None:
    """No ordinary command pays for asyncio, rich or a package of the daemon's when it starts."""
    found = list(loaded_by_the_command_line())

    assert [str(one) for one in found if one.target.partition(".")[0] in SLOW_TO_IMPORT] == []


@pytest.mark.skipif("kmsd_client.cli.main" not in modules(), reason="there is no command line")
def test_starting_the_command_line_loads_nothing_slow() -> None:
    """The same, seen in a real interpreter, where the packages' own imports count too."""
    program = "import sys, kmsd_client.cli.main; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert SLOW_TO_IMPORT & set(ran.stdout.split()) == set()


def text_files() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            yield name, data.decode()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_no_file_tells_where_it_was_written() -> None:
    """No path of a developer's machine and no package registry's address: a clone works the same everywhere."""
    folders = rf"(?<![\w.~-])(?:/root|/home/\w+|{re.escape(str(ROOT))})/"
    registries = r"py" + r"pi\.org|python" + r"hosted\.|https?://[\w.-]*(?:artifact|mirror|registry)|deb\.debian\."
    traces = re.compile(f"{folders}|{registries}")

    wrong = [
        f"{name}:{number}: {found.group()}"
        for name, text in text_files()
        if name != "tests/test_architecture.py"
        for number, line in enumerate(text.splitlines(), 1)
        if (found := traces.search(line))
    ]

    assert wrong == []


def test_the_lock_pins_every_package_by_hash() -> None:
    """`pip install --require-hashes` works from the lock alone, and the lock names no registry."""
    lock = (ROOT / "requirements.lock").read_text()
    logical = [line for line in lock.replace("\\\n", "").splitlines() if line and not line.startswith("#")]

    assert logical
    assert [line for line in logical if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)] == []
    assert "://" not in lock
