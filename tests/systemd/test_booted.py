"""kmsd on a host, installed as a package, under a real systemd. The tests build on each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.booted import ROOT, Host, ImpossibleError

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SERVICE = "kmsd.service"
# A person, and two services with users of their own.
PERSON, ONE, TWO = "alice", "svc-one", "svc-two"
# What systemd says of a unit whose credentials it could not have.
CREDENTIALS_FAILED = 243
# How long systemd may take for what it does by itself; a watchdog of two seconds, and a start of one.
PATIENCE_SECONDS = 60

LOAD = """\
import sys, time
from kmsd.api.errors import KmsError
from kmsd_client import Client

done = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for attempt in range(200):
        try:
            with Client() as client:
                for _ in range(50):
                    blob = client.encrypt(key_id=sys.argv[1], plaintext=b"load").ciphertext_blob
                    assert bytes(client.decrypt(ciphertext_blob=blob).plaintext) == b"load"
                    done += 1
            break
        except KmsError as error:
            if not error.retryable:
                raise
            time.sleep(0.05)
    else:
        sys.exit("gave up")
print(done)
"""

# What somebody tries who knows how systemd asks, and is another user.
FAKE = """\
import socket

sock = socket.socket(socket.AF_UNIX)
sock.bind(b"\\0adf9d86b6eda275e/unit/shop.service/tls-key")
sock.connect("/run/kmsd/credential.sock")
print(sock.recv(100))
"""
PEM = "-----BEGIN PRIVATE KEY-----"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The one host of this module. Its folder is short and can be entered: it holds sockets and users' files."""
    folder = Path(tempfile.mkdtemp(prefix="kmsd-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        made = copied(folder)
        try:
            made.boot()
            yield made
            made.shut_down()
        finally:
            made.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def copied(folder: Path) -> Host:
    try:
        return Host.copy(folder)
    except ImpossibleError as error:
        pytest.skip(f"no booted systemd here: {error}")


@pytest.fixture(scope="module")
def installed(host: Host, build: Callable[[int], Path]) -> Host:
    """The host, with the package, set up, and with those who are to use it."""
    install(host, build(1))
    host.run("kmsd", "init", "--non-interactive", "--recovery", "none")
    host.run("useradd", "--create-home", "--groups", "kms-users", PERSON)
    for user in (ONE, TWO):
        host.run("useradd", "--system", "--groups", "kms-users", user)
    for user in (PERSON, ONE, TWO):
        (host.root / "srv" / user).mkdir()
        host.run("chown", user, f"/srv/{user}")
        (host.root / "srv" / user / "letter").write_text(f"of {user}")
    return host


def install(host: Host, package: Path) -> str:
    shutil.copy(package, host.root / "srv" / package.name)
    done = host.run("dpkg", "--install", f"/srv/{package.name}")
    return done.stdout + done.stderr


def trail(host: Host) -> list[dict[str, Any]]:
    """What is recorded, but for signatures, which come at times of their own."""
    lines = map(json.loads, (host.root / "var/log/kmsd/audit.log").read_text().splitlines())
    return [line for line in lines if line["eventName"] != "SignAuditTrail"]


def uid_of(host: Host, user: str) -> int:
    return int(host.run("id", "-u", user).stdout)


def state(host: Host) -> str:
    return str(json.loads(host.run("kms", "status", "--json").stdout)["State"]).lower()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def started_with(host: Host, unit: str, credential: str, *, check: bool = True) -> str | None:
    """What a unit that is started reads from its credential; None if it does not start."""
    run = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={unit}", f"--uid={ONE}")
    load = f"--property=LoadCredential={credential}:/run/kmsd/credential.sock"
    done = host.run(*run, load, "sh", "-c", f'cat "$CREDENTIALS_DIRECTORY/{credential}"', check=check)
    assert done.returncode in {0, CREDENTIALS_FAILED}
    return None if done.returncode else done.stdout


def encryption(key: str) -> tuple[str, ...]:
    """A command that needs a key, and says nothing to anybody but in the end."""
    return ("/usr/bin/kms", "api", "Encrypt", "--key-id", key, "--plaintext", "@/etc/hostname")


def in_unit(host: Host, unit: str, key: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Encrypt under a key in a system unit of this name."""
    run = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--unit={unit}", *options)
    return host.run(*run, *encryption(key), check=False)


def key_for(host: Host, unit: str) -> str:
    """A key with which only this system unit may encrypt."""
    manages = {"Effect": "Allow", "Principal": {"Unix": "uid:0"}, "NotAction": "kms:Encrypt", "Resource": "*"}
    uses = {"Effect": "Allow", "Principal": {"Unix": f"unit:{unit}"}, "Action": "kms:Encrypt", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [manages, uses]})
    made = json.loads(host.run("kms", "api", "CreateKey", "--policy", policy).stdout)
    return str(made["KeyMetadata"]["KeyId"])


def newest(host: Host, event: str) -> dict[str, Any]:
    """Who did it last."""
    identity: dict[str, Any] = [line for line in trail(host) if line["eventName"] == event][-1]["userIdentity"]
    return identity


def opened(host: Host, user: str) -> str:
    """What a user's encrypted letter says."""
    return host.as_user(user, "kms", "decrypt", "-o", "-", f"/srv/{user}/letter.kms").stdout


def test_a_host_is_set_up_by_one_command(installed: Host) -> None:
    """The daemon runs as its own user, unsealed, and starts at boot; nothing else has failed."""
    assert state(installed) == "unsealed"
    assert installed.property(SERVICE, "ActiveState") == "active"
    assert installed.property(SERVICE, "User") == "kmsd"
    assert installed.run("systemctl", "is-enabled", "kmsd.socket", SERVICE).stdout.split() == ["enabled", "enabled"]
    assert installed.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""


def test_set_up_again_changes_nothing(installed: Host) -> None:
    """Not even the process."""
    before = installed.property(SERVICE, "MainPID")

    installed.run("kmsd", "init", "--non-interactive", "--recovery", "none")

    assert installed.property(SERVICE, "MainPID") == before
    assert state(installed) == "unsealed"


def test_the_readme_s_commands_for_a_host_work(installed: Host) -> None:
    """Those behind the installation; on a host without a time service, doctor has a warning and no failure."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (make, install_package, *commands), backup, credential = [block.splitlines() for block in blocks]
    installed.run("sh", "-c", "head -c 32 /dev/urandom > session.key")

    outputs = [installed.run("sh", "-c", command).stdout for command in commands]
    backed_up = [installed.run("sh", "-c", command).stdout for command in backup]
    kept = [installed.run("sh", "-c", command).stdout for command in credential]

    assert (make, install_package.partition(" ")[0]) == ("make deb", "apt-get")
    assert [command.partition(" ")[0] for command in commands] == ["kmsd", "usermod", "kms"]
    assert not any(line.startswith("fail") for line in outputs[-1].splitlines())
    assert "whole, opened by the token" in backed_up[-1]
    assert "LoadCredential=session-key:/run/kmsd/credential.sock" in kept[-1]


def test_persons_and_services_encrypt_and_decrypt(installed: Host) -> None:
    """Files and blobs, each under a key of its own, and the trail has the uid that the kernel gave."""
    for user, act in ((PERSON, installed.as_user), (ONE, installed.as_service), (TWO, installed.as_service)):
        act(user, "kms", "key", "create", "--alias", f"alias/{user}")
        act(user, "kms", "encrypt", "-k", f"alias/{user}", f"/srv/{user}/letter")
        assert act(user, "kms", "decrypt", "-o", "-", f"/srv/{user}/letter.kms").stdout == f"of {user}"
        sealed = json.loads(
            act(
                user, "kms", "api", "Encrypt", "--key-id", f"alias/{user}", "--plaintext", f"@/srv/{user}/letter"
            ).stdout
        )
        assert sealed["CiphertextBlob"]
        acted = [one for one in trail(installed) if one.get("userIdentity", {}).get("userName") == user]
        assert {"CreateKey", "EncryptFile", "DecryptFile", "Encrypt"} <= {one["eventName"] for one in acted}
        assert {one["userIdentity"]["uid"] for one in acted} == {uid_of(installed, user)}


def test_a_service_does_not_read_what_another_encrypted(installed: Host) -> None:
    """Not even with the file."""
    shutil.copy(installed.root / "srv" / ONE / "letter.kms", installed.root / "srv/stolen.kms")
    (installed.root / "srv/stolen.kms").chmod(0o644)

    refused = installed.as_service(TWO, "kms", "decrypt", "-o", "-", "/srv/stolen.kms", check=False)

    assert refused.returncode == 1
    assert "may not kms:Decrypt" in refused.stderr
    assert trail(installed)[-1]["userIdentity"]["uid"] == uid_of(installed, TWO)


def test_the_unit_lets_every_protection_work(installed: Host) -> None:
    """Secret memory and all that the processes forbid themselves, inside systemd's own filter, where it is required."""
    settings = installed.root / "etc/kmsd/kmsd.toml"
    settings.write_text(f'hardening = "require"\n{settings.read_text()}')
    installed.run("systemctl", "restart", SERVICE)
    status = installed.run("kms", "status").stdout

    assert "memfd_secret" in status
    assert "all protections are on" in status
    assert installed.run("journalctl", "-q", "-u", SERVICE, "--grep", "Traceback", check=False).stdout == ""


def test_metrics_come_where_they_are_collected(installed: Host) -> None:
    """By a unit that kmsd knows by its name, for everybody to read; also that there are none."""
    unit, place = "kmsd-metrics.service", "/run/kmsd-metrics/kmsd.prom"
    installed.run("systemctl", "start", unit)
    assert "\nkmsd_up 1.0\n" in installed.as_service(ONE, "cat", place).stdout
    assert trail(installed)[-1]["userIdentity"]["unit"] == unit

    installed.run("systemctl", "stop", "kmsd.socket", SERVICE)
    assert installed.run("systemctl", "start", unit, check=False).returncode != 0
    assert installed.as_service(ONE, "cat", place).stdout.endswith("kmsd_up 0\n")

    installed.run("systemctl", "start", "kmsd.socket", SERVICE)
    installed.run("systemctl", "start", unit)
    assert "\nkmsd_up 1.0\n" in installed.as_service(ONE, "cat", place).stdout
    installed.run("systemctl", "enable", "--now", "kmsd-metrics.timer")
    assert installed.property("kmsd-metrics.timer", "ActiveState") == "active"
    installed.run("systemctl", "disable", "--now", "kmsd-metrics.timer")


def test_a_reboot_comes_back_unsealed(installed: Host) -> None:
    """Without anybody's help."""
    installed.shut_down()
    installed.boot()

    assert state(installed) == "unsealed"
    assert opened(installed, PERSON) == f"of {PERSON}"
    assert installed.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""


def test_a_restart_under_load_loses_no_request(installed: Host) -> None:
    """Clients try again what may be tried again, and connections wait in the socket meanwhile."""
    (installed.root / "srv/load.py").write_text(LOAD)
    start = ("systemd-run", "--quiet", "--unit=load", f"--uid={ONE}", "--property=RemainAfterExit=yes")
    installed.run(*start, "/usr/lib/kmsd/bin/python3", "-I", "/srv/load.py", f"alias/{ONE}", "6")
    before = installed.property(SERVICE, "MainPID")

    for _ in range(2):
        time.sleep(1)
        installed.run("systemctl", "restart", SERVICE)

    wait_until(lambda: installed.property("load.service", "SubState") in {"exited", "failed"})
    said = installed.run("journalctl", "-q", "-o", "cat", "-u", "load.service").stdout
    assert installed.property("load.service", "Result") == "success", said
    assert installed.property(SERVICE, "MainPID") != before
    installed.run("systemctl", "stop", "load.service")


def test_a_wedged_daemon_is_replaced_by_the_watchdog(installed: Host) -> None:
    """It does nothing any more, and systemd notices."""
    place = installed.root / "etc/systemd/system/kmsd.service.d"
    place.mkdir()
    (place / "short-watchdog.conf").write_text("[Service]\nWatchdogSec=2\n")
    installed.run("systemctl", "daemon-reload")
    installed.run("systemctl", "restart", SERVICE)
    before = installed.property(SERVICE, "MainPID")

    installed.run("kill", "-STOP", before)

    wait_until(lambda: installed.property(SERVICE, "MainPID") not in {before, "0"})
    assert opened(installed, PERSON) == f"of {PERSON}"
    shutil.rmtree(place)
    installed.run("systemctl", "daemon-reload")
    installed.run("systemctl", "restart", SERVICE)


def test_a_reload_reads_the_host_policy_anew(installed: Host) -> None:
    """In the same process; one that is not valid leaves the old one in force."""
    before = installed.property(SERVICE, "MainPID")
    policy = installed.root / "etc/kmsd/policy.d/50-no-random.json"
    deny = {"Effect": "Deny", "Principal": {"Unix": f"user:{TWO}"}, "Action": "kms:GenerateRandom", "Resource": "*"}
    policy.write_text(json.dumps({"Version": "2012-10-17", "Statement": [deny]}))

    installed.run("systemctl", "reload", SERVICE)
    wait_until(lambda: installed.as_user(TWO, "kms", "random", "8", "--hex", check=False).returncode == 1)

    policy.write_text("{")
    installed.run("systemctl", "reload", SERVICE)
    wait_until(lambda: "the old host policy is in force" in installed.property(SERVICE, "StatusText"))
    assert installed.as_user(TWO, "kms", "random", "8", "--hex", check=False).returncode == 1
    policy.unlink()
    installed.run("systemctl", "reload", SERVICE)
    wait_until(lambda: installed.as_user(TWO, "kms", "random", "8", "--hex", check=False).returncode == 0)
    assert installed.property(SERVICE, "MainPID") == before


def test_a_service_gets_the_secret_that_is_kept_for_its_unit(installed: Host) -> None:
    """As a file, without code of its own; another unit that asks for it does not start."""
    kept = installed.run("kms", "credential", "create", "--unit", "shop.service", "tls-key", stdin=PEM)

    assert kept.stdout.endswith("\nLoadCredential=tls-key:/run/kmsd/credential.sock\n")
    assert started_with(installed, "shop.service", "tls-key") == PEM
    assert started_with(installed, "other.service", "tls-key", check=False) is None
    assert started_with(installed, "shop.service", "other", check=False) is None
    first, second, third = (one for one in trail(installed) if one["eventName"] == "GetCredential")
    assert first["requestParameters"] == {"unit": "shop.service", "name": "tls-key"}
    assert "errorCode" not in first
    assert second["errorCode"] == third["errorCode"] == "NotFoundException"


def test_who_takes_systemd_s_name_gets_nothing(installed: Host) -> None:
    """The socket lets nobody but root in, and the daemon believes nobody else."""
    assert "PermissionError" in installed.as_user(TWO, "python3", "-c", FAKE, check=False).stderr

    installed.run("chmod", "666", "/run/kmsd/credential.sock")
    assert installed.as_user(TWO, "python3", "-c", FAKE).stdout == "b''\n"
    installed.run("chmod", "600", "/run/kmsd/credential.sock")

    refused = trail(installed)[-1]
    assert (refused["eventName"], refused["errorCode"]) == ("GetCredential", "AccessDeniedException")
    assert refused["userIdentity"]["uid"] == uid_of(installed, TWO)


def test_a_unit_is_let_by_its_name(installed: Host) -> None:
    """Whichever user it has; a unit of the same name that a user made is another, and so is what root does by hand."""
    key = key_for(installed, "teller.service")
    of_user = installed.root / f"home/{PERSON}/.config/systemd/user/teller.service"
    of_user.parent.mkdir(parents=True)
    command = " ".join(encryption(key))
    of_user.write_text(f"[Service]\nType=oneshot\nExecStart={command}\nStandardError=append:%h/said\n")
    installed.run("chown", "-R", f"{PERSON}:", f"/home/{PERSON}/.config")
    uid = uid_of(installed, PERSON)
    # What pam_systemd does at a login.
    (installed.root / "etc/systemd/system/user@.service.d").mkdir()
    (installed.root / "etc/systemd/system/user@.service.d/login.conf").write_text(
        "[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n"
    )
    installed.run("systemctl", "daemon-reload")
    installed.run("systemctl", "start", f"user@{uid}.service")

    for user in (ONE, PERSON):
        assert in_unit(installed, "teller.service", key, f"--uid={user}").returncode == 0
    assert newest(installed, "Encrypt")["unit"] == "teller.service"
    own_manager = ("env", f"XDG_RUNTIME_DIR=/run/user/{uid}", "systemctl", "--user")
    assert installed.as_user(PERSON, *own_manager, "start", "teller.service", check=False).returncode == 1

    assert "AccessDenied" in (installed.root / f"home/{PERSON}/said").read_text()
    assert newest(installed, "Encrypt")["unit"] == f"user-unit:{uid}/teller.service"
    assert in_unit(installed, "cashier.service", key).returncode == 1
    assert "AccessDenied" in installed.run(*encryption(key), check=False).stderr
    installed.run("systemctl", "stop", f"user@{uid}.service")


def test_a_service_without_a_lasting_user_is_let_by_its_unit(installed: Host) -> None:
    """Its uid is another service's tomorrow, so that it has no name here."""
    key = key_for(installed, "fleeting.service")

    assert in_unit(installed, "fleeting.service", key, "--property=DynamicUser=yes").returncode == 0

    who = newest(installed, "Encrypt")
    assert (who["unit"], who["userName"]) == ("fleeting.service", None)
    assert 61184 <= who["uid"] <= 65519


def test_a_unit_starts_once_kmsd_is_unsealed(installed: Host) -> None:
    """Not before, and not with an empty secret. A kmsd that does not run is started for it."""
    installed.run("kms", "seal")
    assert started_with(installed, "shop.service", "tls-key", check=False) is None

    installed.run("systemctl", "stop", SERVICE)

    assert started_with(installed, "shop.service", "tls-key") == PEM
    assert state(installed) == "unsealed"


def test_events_are_in_the_journal_once_whatever_is_restarted(installed: Host) -> None:
    """By a unit that is nobody: it goes on where it was, across a crash of kmsd and a restart of both."""
    installed.run("systemctl", "enable", "--now", "kmsd-events.service")
    position = installed.root / "var/lib/private/kmsd-events/position"
    wait_until(position.exists)
    begun = position.read_text().strip()
    key = key_for(installed, "kmsd-events.service")
    installed.run("kms", "key", "rotate", key, "--now")
    wait_until(lambda: any("KMS CMK Rotation" in line for line in told_of_events(installed)))
    installed.run("kill", "-KILL", installed.property(SERVICE, "MainPID"))
    wait_until(lambda: len([line for line in told_of_events(installed) if line.startswith("Started")]) == 1)

    installed.run("systemctl", "restart", SERVICE)

    wait_until(lambda: len([line for line in told_of_events(installed) if line.startswith("Started")]) == 2)
    events = map(json.loads, installed.run("kms", "events", "--json", "--since", begun).stdout.splitlines())
    told = [f"{one['detail-type']} {one['detail']['sequence']}" for one in events]
    assert [re.sub(r":.* \[record (\d+)\]", r" \1", line) for line in told_of_events(installed)] == told
    assert installed.property("kmsd-events.service", "NRestarts") == "0"
    installed.run("systemctl", "disable", "--now", "kmsd-events.service")


def told_of_events(host: Host) -> list[str]:
    said = host.run("journalctl", "-q", "-o", "cat", "-u", "kmsd-events.service", "--grep", "\\[record", check=False)
    return said.stdout.splitlines()


def test_an_upgrade_keeps_everything(installed: Host, build: Callable[[int], Path]) -> None:
    """The new version takes the place of the old at the same socket."""
    before = installed.property(SERVICE, "MainPID")
    socket = installed.property("kmsd.socket", "ActiveEnterTimestampMonotonic")

    install(installed, build(2))

    assert installed.property(SERVICE, "MainPID") not in {before, "0"}
    assert installed.property("kmsd.socket", "ActiveEnterTimestampMonotonic") == socket
    assert state(installed) == "unsealed"
    assert opened(installed, PERSON) == f"of {PERSON}"
    assert started_with(installed, "shop.service", "tls-key") == PEM


def test_purging_keeps_keys_and_says_where(installed: Host) -> None:
    """Removing stops the daemon; only a person removes keys."""
    kept = ["/var/lib/kmsd", "/var/log/kmsd/audit.log", "/etc/kmsd/kmsd.toml", "/etc/credstore.encrypted/kmsd.hsm-pin"]

    installed.run("dpkg", "--remove", "kmsd")
    assert installed.run("systemctl", "is-active", SERVICE, "kmsd.socket", check=False).returncode != 0
    purged = installed.run("dpkg", "--purge", "kmsd")

    assert "/var/lib/kmsd" in purged.stderr
    assert "rm -r" in purged.stderr
    for path in kept:
        installed.run("test", "-e", path)
    assert not (installed.root / "usr/lib/kmsd").exists()
    assert installed.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""


def test_installed_again_it_finds_the_old_keys(installed: Host, build: Callable[[int], Path]) -> None:
    """And opens what was encrypted before."""
    install(installed, build(2))
    installed.run("kmsd", "init", "--non-interactive", "--recovery", "none")

    assert state(installed) == "unsealed"
    assert opened(installed, PERSON) == f"of {PERSON}"
    assert installed.as_service(ONE, "kms", "decrypt", "-o", "-", f"/srv/{ONE}/letter.kms").stdout == f"of {ONE}"
    assert installed.run("kms", "audit", "verify").returncode == 0
    assert installed.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""
