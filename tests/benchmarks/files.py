"""One file, encrypted and decrypted by kms and by its peers, interleaved in one run."""

import filecmp
import os
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.daemon import SCRIPTS, Daemon
from tests.benchmarks.report import Row, median

# DESIGN 14. Ratios of throughput, but for the pipe (GB/s).
TO_CP = 0.9
TO_AGE = 3.0
TO_DD = 0.9
PIPE_GIGABYTES_PER_SECOND = 1.5

# Debian's packages of each peer, which are named as their programs; gpg asks its agent even for a given passphrase.
PACKAGES = {"age": ["age"], "gpg": ["gpg", "gpg-agent"], "openssl": ["openssl"]}


COPIES = ("first copy", "second copy")


@dataclass(frozen=True)
class Contestant:
    """A way to make a file from another and to make the first one again; commands for sh, which name them $1 and $2.

    Copiers copy twice: a second large file in a row is slower to write on some machines, whoever writes it.
    """

    name: str
    there: str
    back: str | None = None
    directions: tuple[str, str] = ("encrypt", "decrypt")


def missing_peers() -> list[str]:
    """Return the peers that are not there, after root has tried to install them."""
    missing = [name for name in PACKAGES if not _is_there(name)]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {', '.join(missing)}")
        install = [
            "apt-get",
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
            *(one for name in missing for one in PACKAGES[name]),
        ]
        subprocess.run(install, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        missing = [name for name in missing if not _is_there(name)]
    return missing


def _is_there(name: str) -> bool:
    return all(shutil.which(program) for program in PACKAGES[name])


def contestants(folder: Path, missing: Sequence[str]) -> list[Contestant]:
    """Return everyone who takes part; keys and passphrases for the peers are made in `folder`."""
    passphrase = folder / "passphrase"
    passphrase.write_text("a passphrase for the benchmark\n")
    copy, copy_to_disk = 'cp --reflink=never "$1" "$2"', 'dd if="$1" of="$2" bs=1M conv=fsync status=none'
    found = [
        Contestant("cp", copy, copy, COPIES),
        Contestant(
            "kms, no fsync", 'kms encrypt --no-sync -k "$KEY" -o "$2" "$1"', 'kms decrypt --no-sync -o "$2" "$1"'
        ),
        Contestant("dd, fsync", copy_to_disk, copy_to_disk, COPIES),
        Contestant("kms", 'kms encrypt -k "$KEY" -o "$2" "$1"', 'kms decrypt -o "$2" "$1"'),
        Contestant(
            "kms, pipe to pipe",
            'cat "$1" | kms encrypt -k "$KEY" - | cat >/dev/null',
        ),
    ]
    if "age" not in missing:
        identity = folder / "identity"
        subprocess.run(["age-keygen", "-o", identity], stderr=subprocess.DEVNULL, check=True)
        recipient = subprocess.run(["age-keygen", "-y", identity], stdout=subprocess.PIPE, text=True, check=True)
        encrypt = f'age -r {recipient.stdout.strip()} -o "$2" "$1"'
        found.append(Contestant("age", encrypt, f'age -d -i {identity} -o "$2" "$1"'))
    if "gpg" not in missing:
        gpg = f"gpg --batch --quiet --yes --pinentry-mode loopback --passphrase-file {passphrase}"
        encrypt = f'{gpg} --symmetric --cipher-algo AES256 --compress-algo none -o "$2" "$1"'
        found.append(Contestant("gpg", encrypt, f'{gpg} --decrypt -o "$2" "$1"'))
    if "openssl" not in missing:
        openssl = f'openssl enc -aes-256-ctr -pbkdf2 -pass file:{passphrase} -in "$1" -out "$2"'
        found.append(Contestant("openssl enc", openssl, f"{openssl} -d"))
    return found


def make_source(path: Path, size: int) -> None:
    """Write `size` random bytes, and leave them in the page cache."""
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))


def timed(command: str, source: Path, output: Path, environment: Mapping[str, str]) -> float:
    """Run a command and return its seconds; what earlier ones left unwritten is written first.

    The source is read before, too: a kernel may have dropped a file from its cache that was only written so far.
    """
    os.sync()
    with source.open("rb") as file:
        while file.read(1 << 20):
            pass
    began = time.perf_counter()
    subprocess.run(["sh", "-c", command, "sh", source, output], env=environment, check=True)
    return time.perf_counter() - began


def race(daemon: Daemon, folder: Path, source: Path, *, rounds: int) -> list[Row]:
    """Let all contestants run `rounds` times, taking turns, and compare their medians."""
    missing = missing_peers()
    gnupg = folder / "gnupg"
    gnupg.mkdir(mode=0o700)
    environment = daemon.environment | {"KEY": daemon.key, "GNUPGHOME": str(gnupg)}
    environment["PATH"] = f"{SCRIPTS}:{environment['PATH']}"
    taking_part = contestants(folder, missing)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    sealed, opened = folder / "sealed", folder / "opened"
    for turn in range(rounds):
        for contestant in taking_part:
            name, (there, back) = contestant.name, contestant.directions
            seconds[name, there].append(timed(contestant.there, source, sealed, environment))
            if contestant.back is not None:
                seconds[name, back].append(timed(contestant.back, sealed, opened, environment))
                if turn == 0 and not filecmp.cmp(source, opened, shallow=False):
                    raise SystemExit(f"bench: error: {name} did not give the file back")
            sealed.unlink(missing_ok=True)
            opened.unlink(missing_ok=True)
    if "gpg" not in missing:
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False)
    return _rows({key: source.stat().st_size / 1e9 / median(samples) for key, samples in seconds.items()})


def _rows(speed: dict[tuple[str, str], float]) -> list[Row]:
    targets = {("kms, pipe to pipe", "encrypt"): PIPE_GIGABYTES_PER_SECOND}
    for copied, direction in zip(COPIES, ("encrypt", "decrypt"), strict=True):
        unsynced = max(TO_CP * speed["cp", copied], TO_AGE * speed.get(("age", direction), 0))
        targets["kms, no fsync", direction] = unsynced
        targets["kms", direction] = TO_DD * speed["dd, fsync", copied]
    return [
        Row(f"{name}, {direction}", figure, "GB/s", targets.get((name, direction)))
        for (name, direction), figure in speed.items()
    ]
