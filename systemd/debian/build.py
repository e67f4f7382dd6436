"""`make deb`: the Debian package of kmsd, with a virtual environment of its own under /usr/lib/kmsd.

    python -m systemd.debian.build [--revision N] [--output FOLDER]

It is made for the Debian python3 of the machine that builds it, and depends on that minor version. Third-party packages
are those of requirements.lock, by hash and as wheels; they are kept under .cache until lock or interpreter change. With
the same inputs and SOURCE_DATE_EPOCH (by default the time of the last commit) the package is the same, byte by byte.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import kmsd
from systemd.debian.locked import ROOT, locked
from systemd.debian.manual import PAGES

HERE = Path(__file__).resolve().parent
UNITS = ROOT / "systemd"
CACHE = ROOT / ".cache" / "deb"
# Debian's own, whatever else is on PATH: it is the one that the package runs with.
PYTHON = Path("/usr/bin/python3")
HOME = Path("usr/lib/kmsd")
# What a console script is, without pkg_resources or pip's wrapper; -I: neither variables nor the user's own packages
# change what runs.
SCRIPT = """\
#!/{home}/bin/python3 -I
import sys

from {module} import main

sys.exit(main())
"""
SCRIPTS = {"kms": "kmsd_client.cli.main", "kmsd": "kmsd.commands.main"}
SYSTEM_UNITS = (
    "kmsd.service",
    "kmsd.socket",
    "kmsd-credential.socket",
    "kmsd-events.service",
    "kmsd-metrics.service",
    "kmsd-metrics.timer",
)
DESCRIPTION = """\
key management service for one Linux host
 The operations, key policies and audit trail of AWS KMS behind a Unix socket.
 Keys are made in the service, used in it and never leave it. Who is calling is
 what the kernel says; there are no passwords or API secrets. The root of the
 keys is in a PKCS#11 token, such as SoftHSM2 or a hardware security module.
 .
 After the installation, "kmsd init" sets the host up.
"""


def run(*command: str | Path, **environment: str) -> str:
    """Run a command that has to succeed and return what it prints."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return done.stdout


def environment_with_packages() -> Path:
    """Return a folder with `usr/lib/kmsd`: a virtual environment with the locked packages, without kmsd itself."""
    requirements = locked(["daemon"])
    key = hashlib.sha256(f"{run(PYTHON, '-VV')}{requirements}{Path(__file__).read_text()}".encode()).hexdigest()[:16]
    made = CACHE / f"environment-{key}"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            place = Path(work, "root", HOME)
            run(PYTHON, "-m", "venv", "--without-pip", place)
            listed = Path(work, "requirements.txt")
            listed.write_text(requirements)
            pip(place, "--require-hashes", "--only-binary", ":all:", "--requirement", str(listed))
            strip(place)
            compile_below(Path(work, "root"))
            Path(work, "root").rename(made)
    return made


def pip(place: Path, *arguments: str) -> None:
    """Install into the environment with this one's pip, so that the package needs none."""
    python = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", place / "bin/python3")
    run(*python, "install", "--no-compile", "--no-warn-script-location", *arguments)


def strip(place: Path) -> None:
    """Take away what only a developer needs, and what names this machine."""
    for left in (place / "include", place / "share"):
        shutil.rmtree(left, ignore_errors=True)
    (place / "lib64").unlink(missing_ok=True)
    remove_scripts(place)
    version = run(PYTHON, "-c", "import platform; print(platform.python_version())").strip()
    (place / "pyvenv.cfg").write_text(
        f"home = {PYTHON.parent}\ninclude-system-site-packages = false\nversion = {version}\n"
    )


def remove_scripts(place: Path) -> None:
    """Remove what pip made to be executed, which names the folder of the build, and its place in pip's records."""
    for script in (place / "bin").iterdir():
        if not script.is_symlink():
            script.unlink()
    for record in place.glob("lib/*/site-packages/*.dist-info/RECORD"):
        lines = record.read_text("utf-8").splitlines(keepends=True)
        record.write_text("".join(line for line in lines if not line.startswith("../../../bin/")), "utf-8")


def install_kmsd(root: Path, work: Path) -> None:
    """Add kmsd itself, its commands, and everything compiled."""
    wheels = work / "wheels"
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel"),
        *("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", wheels, "."),
    )
    # By name and not by file: pip would record the file's place.
    pip(root / HOME, "--no-deps", "--no-index", "--find-links", str(wheels), "kmsd")
    remove_scripts(root / HOME)
    for name, module in SCRIPTS.items():
        write(root / HOME / "bin" / name, SCRIPT.format(home=HOME, module=module), mode=0o755)
        link = root / "usr/bin" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(f"../lib/kmsd/bin/{name}")
    compile_below(root)


def compile_below(root: Path) -> None:
    """Compile what is not compiled yet, for where it will be installed."""
    # dpkg owns sources and compiled files together, so Python need not look whether they belong together.
    run(
        *(PYTHON, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"),
        *("-s", str(root), "-p", "/", root / HOME / "lib"),
    )


def write(path: Path, text: str | bytes, *, mode: int = 0o644) -> None:
    """Write a file of the package, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)


def compressed(text: str) -> bytes:
    """Return what `gzip -9n` makes of a text, as Debian wants manual pages and changelogs."""
    return gzip.compress(text.encode(), 9, mtime=0)


def install_files(root: Path, version: str) -> None:
    """Add units, users, directories, manual pages and documentation."""
    for place, sources in {
        "lib/systemd/system": [UNITS / name for name in SYSTEM_UNITS],
        "usr/lib/systemd/user": [UNITS / "user/kmsd.service", UNITS / "user/kmsd.socket"],
        "usr/share/doc/kmsd": [
            ROOT / "README.md",
            ROOT / "SECURITY.md",
            UNITS / "OPERATIONS.md",
            UNITS / "kmsd.toml",
            ROOT / "kmsd" / "events" / "EVENTS.md",
            ROOT / "kmsd" / "metrics" / "METRICS.md",
        ],
        "usr/share/doc/kmsd/monitoring": sorted((UNITS / "monitoring").iterdir()),
        "usr/share/doc/kmsd/drop-ins": sorted((UNITS / "drop-ins").iterdir()),
    }.items():
        for source in sources:
            write(root / place / source.name, source.read_bytes())
    write(root / "usr/lib/sysusers.d/kmsd.conf", (UNITS / "kmsd.sysusers").read_bytes())
    write(root / "usr/lib/tmpfiles.d/kmsd.conf", (UNITS / "kmsd.tmpfiles").read_bytes())
    for name, text in PAGES.items():
        section = name.rpartition(".")[2]
        write(root / f"usr/share/man/man{section}" / f"{name}.gz", compressed(text()))
    documents = root / "usr/share/doc/kmsd"
    write(documents / "NEWS.gz", compressed((ROOT / "CHANGELOG.md").read_text("utf-8")))
    write(documents / "copyright", (HERE / "copyright").read_bytes())
    when = run("date", "--rfc-email", f"--date=@{epoch()}").strip()
    entry = f"kmsd ({version}) unstable; urgency=medium\n\n  * See NEWS.\n\n -- {maintainer()}  {when}\n"
    write(documents / "changelog.Debian.gz", compressed(entry))


def epoch() -> int:
    """Return the time that the package's files bear: SOURCE_DATE_EPOCH, or that of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or run("git", "log", "-1", "--format=%ct"))


def maintainer() -> str:
    """Return who answers for the package, as Debian's tools are told it."""
    name = os.environ.get("DEBFULLNAME", "kmsd maintainers")
    return f"{name} <{os.environ.get('DEBEMAIL', 'root@localhost')}>"


def libc_needed(root: Path) -> str:
    """Return the newest version of the C library of which the compiled modules use something."""
    found = {(2, 17)}  # the oldest that Python wheels are made for
    for library in files_below(root):
        if ".so" in library.suffixes:
            found |= {(2, int(minor)) for minor in re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())}
    return ".".join(map(str, max(found)))


def files_below(root: Path) -> Iterator[Path]:
    """Every regular file of the package."""
    return (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())


def write_control(root: Path, version: str) -> None:
    """Add what dpkg reads: the control file, checksums, and the scripts that run around installing and removing."""
    minor = int(run(PYTHON, "-c", "import sys; print(sys.version_info.minor)"))
    kibibytes = sum(path.stat().st_size for path in files_below(root)) // 1024
    sums = "".join(
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files_below(root)
    )
    needs = f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1}), libc6 (>= {libc_needed(root)})"
    control = f"""\
        Package: kmsd
        Version: {version}
        Architecture: {run("dpkg", "--print-architecture").strip()}
        Maintainer: {maintainer()}
        Installed-Size: {kibibytes}
        Depends: {needs}, procps, systemd (>= 252)
        Recommends: softhsm2
        Suggests: opensc, pcscd
        Section: admin
        Priority: optional
        Description: """
    write(root / "DEBIAN/control", dedent(control) + DESCRIPTION)
    write(root / "DEBIAN/md5sums", sums)
    for script in ("postinst", "prerm", "postrm"):
        write(root / "DEBIAN" / script, (HERE / script).read_bytes(), mode=0o755)


def normalize(root: Path) -> None:
    """Make modes and times independent of who builds when."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        os.utime(path, (epoch(), epoch()), follow_symlinks=False)


def build(output: Path, revision: str) -> Path:
    """Build the package into the folder `output` and return its path."""
    version = f"{kmsd.__version__}-{revision}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        root = Path(work, "root")
        shutil.copytree(environment_with_packages(), root, symlinks=True)
        install_kmsd(root, Path(work))
        install_files(root, version)
        write_control(root, version)
        normalize(root)
        output.mkdir(parents=True, exist_ok=True)
        architecture = run("dpkg", "--print-architecture").strip()
        package = output / f"kmsd_{version}_{architecture}.deb"
        # A second instead of half a minute for xz, and a fifth larger. dpkg reads it since Debian 12.
        packing = ("dpkg-deb", "--root-owner-group", "-Zzstd", "-z9")
        run(*packing, "--build", root, package, SOURCE_DATE_EPOCH=str(epoch()))
    return package


def main() -> int:
    """Build as the command line says."""
    parser = argparse.ArgumentParser(prog="make deb", description="Build the Debian package.")
    parser.add_argument("--revision", default="1", help="of the package, for the same version of kmsd")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where to put it")
    options = parser.parse_args()
    missing = [str(tool) for tool in ("dpkg-deb", PYTHON) if shutil.which(tool) is None]
    if missing:
        sys.stderr.write(f"deb: error: {', '.join(missing)} is missing; a Debian package is built on Debian\n")
        return 1
    os.umask(0o022)
    print(build(options.output, options.revision))
    return 0


if __name__ == "__main__":
    sys.exit(main())
