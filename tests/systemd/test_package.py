"""What is in the Debian package and on its manual pages, and the client alone."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kmsd.commands.main import make_parser
from kmsd.config import Config
from kmsd_client.cli.main import VERBS
from systemd.debian.locked import locked
from systemd.debian.manual import PAGES
from tests.support.dev_daemon import DevDaemon

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def unpacked(build: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files."""
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "-x", build(1), folder], check=True)
    subprocess.run(["dpkg-deb", "-e", build(1), folder / "DEBIAN"], check=True)
    return folder


def texts(folder: Path) -> dict[Path, str]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and b"\0" not in (data := path.read_bytes()):
            found[path] = data.decode(errors="replace")
    return found


@pytest.mark.timeout(300)
def test_the_package_has_what_a_host_needs(unpacked: Path) -> None:
    """Commands, units, accounts, manual pages, the reference of settings; everything is root's or anybody's to read."""
    for name in (
        "usr/bin/kms",
        "usr/bin/kmsd",
        "lib/systemd/system/kmsd.service",
        "lib/systemd/system/kmsd.socket",
        "lib/systemd/system/kmsd-credential.socket",
        "lib/systemd/system/kmsd-events.service",
        "lib/systemd/system/kmsd-metrics.service",
        "lib/systemd/system/kmsd-metrics.timer",
        "usr/lib/sysusers.d/kmsd.conf",
        "usr/lib/tmpfiles.d/kmsd.conf",
        "usr/share/man/man1/kms.1.gz",
        "usr/share/man/man8/kmsd.8.gz",
        "usr/share/man/man5/kmsd.toml.5.gz",
        "usr/share/doc/kmsd/kmsd.toml",
        "usr/share/doc/kmsd/OPERATIONS.md",
        "usr/share/doc/kmsd/EVENTS.md",
        "usr/share/doc/kmsd/METRICS.md",
        "usr/share/doc/kmsd/monitoring/alerts.yml",
        "usr/share/doc/kmsd/monitoring/grafana-dashboard.json",
    ):
        assert (unpacked / name).exists(), name
    assert not [path for path in unpacked.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    # Nothing of state, settings or keys comes with a package, so that none can be overwritten by one.
    assert not [name for name in ("etc", "var") if (unpacked / name).exists()]


def test_no_file_of_the_package_tells_where_it_was_built(unpacked: Path) -> None:
    """No path of the building machine, and no registry."""
    registries = r"py" + r"pi\.org/simple|files\.python" + r"hosted"
    traces = re.compile(f"{re.escape(str(ROOT))}|{registries}|/tmp/[a-z]")
    own = {
        path: text
        for path, text in texts(unpacked).items()
        if "/site-packages/" not in str(path) or "kmsd" in path.name
    }

    assert [str(path) for path, text in own.items() if traces.search(text)] == []


def test_nothing_compiled_names_the_folder_it_was_built_in(unpacked: Path) -> None:
    """Code objects carry the path of their source, and libraries may carry one to look below."""
    files = (path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink())

    assert [str(path) for path in files if str(ROOT).encode() in path.read_bytes()] == []


def test_no_script_of_the_package_removes_state(unpacked: Path) -> None:
    """The one `rm` is about the links by which units start at boot."""
    for name in ("postinst", "prerm", "postrm"):
        lines = (unpacked / "DEBIAN" / name).read_text().splitlines()
        removing = [line for line in lines if re.match(r"\s*(rm|rmdir|find|userdel|groupdel)\b", line)]

        assert all(line.startswith("rm -f /etc/systemd/system/") for line in removing), name


def test_programs_of_the_package_run_its_own_python(unpacked: Path) -> None:
    """By its final path, and without a look at what the user's environment adds."""
    for name in ("kms", "kmsd"):
        program = (unpacked / "usr/bin" / name).resolve()

        assert program.read_text().startswith("#!/usr/lib/kmsd/bin/python3 -I\n")


def subcommands(parser: argparse.ArgumentParser) -> set[str]:
    return {
        name for action in parser._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices
    }


def settings_of(section: type[msgspec.Struct]) -> set[str]:
    found = set()
    for field in msgspec.structs.fields(section):
        inner = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        found |= settings_of(field.type) if inner else {field.name}
    return found


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("kms.1", set(VERBS)),
        ("kmsd.8", subcommands(make_parser())),
        ("kmsd.toml.5", settings_of(Config)),
    ],
)
def test_a_manual_page_names_everything_there_is(page: str, names: set[str]) -> None:
    """Verbs and settings come from the parsers and the sample, so that none can be forgotten."""
    text = PAGES[page]().replace("\\-", "-")

    assert {name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)} == set()


def test_the_manual_page_of_settings_shows_them_as_they_are_written() -> None:
    """Quotes included, which roff would take for its own."""
    assert "\n.B region = \\(dqlocal\\-host\\-1\\(dq\n" in PAGES["kmsd.toml.5"]()


@pytest.mark.timeout(180)
def test_the_client_alone_works(dev: DevDaemon, tmp_path: Path) -> None:
    """`pipx install .`: the distribution without what only the daemon needs."""
    python = tmp_path / "venv" / "bin" / "python"
    requirements = tmp_path / "requirements"
    requirements.write_text(locked())
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "--quiet")
    build = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")

    subprocess.run([*build, *offline, "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    [wheel] = tmp_path.glob("kmsd-*.whl")
    subprocess.run([*pip, "install", "--require-hashes", "--only-binary", ":all:", "-r", requirements], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    told = dev.run(str(python.with_name("kms")), "status", cwd=tmp_path)
    installed = subprocess.run([*pip, "list"], capture_output=True, text=True, check=True).stdout.lower()

    assert told.stdout.startswith(b"state:         unsealed"), told.stderr
    assert not {"sqlalchemy", "uvloop", "structlog", "python-pkcs11"} & set(installed.split())
    assert dev.run(str(python.with_name("kms")), "--help", cwd=tmp_path).returncode == 0
