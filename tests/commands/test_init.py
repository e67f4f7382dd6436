"""`kmsd init`: an administrator sets a host up, and interrupts it, repeats it and gets it wrong."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmsd.hsm.softhsm import find_module
from tests.support.killed_init import kill
from tests.support.private_host import PrivateHost

pytestmark = pytest.mark.root

_SCRIPTS = Path(sys.executable).parent
_TOKENS = "/var/lib/kmsd/token/tokens"
_PIN_BESIDE = "/var/lib/kmsd/token/pin"
_PIN_FILE = "/etc/kmsd/hsm-pin"
_CREDENTIAL = "/etc/credstore.encrypted/kmsd.hsm-pin"
_SETTINGS = "/etc/kmsd/kmsd.toml"
_STORE = "/var/lib/kmsd/store.sqlite"
_TRAIL = "/var/log/kmsd/audit.log"
_START_SECONDS = 60
# Each takes a second and a half. `make crash` has more.
_KILLS = int(os.environ.get("KMSD_CRASH_RUNS", "5"))


@pytest.fixture
def host(module_path: Path, request: pytest.FixtureRequest) -> PrivateHost:
    return PrivateHost(module_path / f"host-{len(list(module_path.iterdir()))}")


@pytest.fixture
def serving(host: PrivateHost) -> Iterator[PrivateHost]:
    """A host that was set up without systemd, and whose daemon was started by hand."""
    assert host.init().returncode == 0
    command = host.command(str(_SCRIPTS / "kmsd"), "serve")
    errors = host.top / "serve.err"
    with errors.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while '"Start"' not in host.path(_TRAIL).read_text():
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < deadline, errors.read_text()
            time.sleep(0.01)
        yield host
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(_START_SECONDS) == 0, errors.read_text()


def _files(host: PrivateHost) -> dict[str, tuple[object, ...]]:
    """What is on the host: each file's owner, mode, identity, and content where it has one."""
    found: dict[str, tuple[object, ...]] = {}
    for top in ("etc", "var"):
        for path in sorted((host.top / top).rglob("*")):
            facts = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
            found[str(path)] = (facts.st_mode, facts.st_uid, facts.st_gid, facts.st_ino, content)
    return found


def _modes(host: PrivateHost, *paths: str) -> list[str]:
    ran = host.run("stat", "-c", "%U:%G %a", *paths)
    assert not ran.stderr
    return ran.stdout.splitlines()


def _kms(host: PrivateHost, words: str) -> subprocess.CompletedProcess[str]:
    return host.run("sh", "-c", f"PATH={_SCRIPTS}:$PATH; {words}")


def _opens(host: PrivateHost, pin: str) -> bool:
    """Whether this PIN opens the token that was made, and the root key is in it, once."""
    program = """
import pkcs11, sys
token = pkcs11.lib(sys.argv[1]).get_token(token_label="kmsd")
with token.open(user_pin=sys.stdin.read()) as session:
    print(len(list(session.get_objects({pkcs11.Attribute.LABEL: "kmsd-root"}))))
"""
    conf = "SOFTHSM2_CONF=/var/lib/kmsd/token/softhsm2.conf"
    return host.run("env", conf, sys.executable, "-c", program, str(find_module()), given=pin).stdout == "1\n"


class _VendorToken:
    """A token that somebody has set up, in another module as far as kmsd can tell: another SoftHSM2 token."""

    pin = "vendor-pin-1"

    def __init__(self, host: PrivateHost, extra: str = "") -> None:
        self.host = host
        folder = host.path("/var/lib/vendor")
        (folder / "tokens").mkdir(parents=True)
        (folder / "conf").write_text(
            f"directories.tokendir = /var/lib/vendor/tokens\nobjectstore.backend = file\n{extra}"
        )
        (folder / "pin").write_text(f"{self.pin}\n")
        (folder / "pin").chmod(0o600)
        made = self._run(
            *("softhsm2-util", "--module", str(find_module()), "--init-token", "--free", "--label", "vendor"),
            *("--pin", self.pin, "--so-pin", "officer-pin-1"),
        )
        assert made.returncode == 0, made.stderr
        host.run("useradd", "--system", "--user-group", "kmsd")
        self.give_to_service()

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.host.run("env", "SOFTHSM2_CONF=/var/lib/vendor/conf", *words)

    def give_to_service(self) -> None:
        self.host.run("chown", "-R", "kmsd:", "/var/lib/vendor")

    def make_key(self, extractable: bool) -> None:
        program = f"""
import pkcs11
token = pkcs11.lib({str(find_module())!r}).get_token(token_label="vendor")
with token.open(rw=True, user_pin={self.pin!r}) as session:
    session.generate_key(
        pkcs11.KeyType.AES, 256, label="kmsd-root", store=True,
        template={{pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: {extractable},
                  pkcs11.Attribute.ENCRYPT: True, pkcs11.Attribute.DECRYPT: True}},
    )
"""
        made = self._run(sys.executable, "-c", program)
        assert made.returncode == 0, made.stderr
        self.give_to_service()

    @property
    def options(self) -> list[str]:
        return [
            *("--module", str(find_module()), "--token-label", "vendor", "--pin-file", "/var/lib/vendor/pin"),
            *("--module-environment", "SOFTHSM2_CONF=/var/lib/vendor/conf"),
        ]

    def write_settings(self, pin: str) -> None:
        """Settings as an administrator writes them, who knows what the module needs."""
        folder = self.host.path("/etc/kmsd")
        folder.mkdir()
        (folder / "kmsd.toml").write_text(
            f'[hsm]\nmodule = "{find_module()}"\ntoken_label = "vendor"\npin = "{pin}"\n'
            'environment = {SOFTHSM2_CONF = "/var/lib/vendor/conf"}\nwritable_paths = ["/var/lib/vendor"]\n'
        )


def test_sets_a_host_up_and_what_it_made_serves(serving: PrivateHost) -> None:
    """After init, a daemon started by hand is unsealed, encrypts and decrypts, and the doctor finds its token."""
    ran = _kms(
        serving, "kms key create --alias alias/x > /dev/null; printf hello | kms encrypt -k alias/x - | kms decrypt -"
    )
    assert (ran.stdout, ran.stderr) == ("hello", "")
    doctor = _kms(serving, "kms doctor").stdout
    assert "unsealed" in doctor
    assert "SoftHSM" in doctor


def test_gives_each_thing_its_owner_and_mode(host: PrivateHost) -> None:
    """What the service owns is closed to others; what only root changes is root's; the PIN is for the service alone."""
    assert host.init().returncode == 0
    assert _modes(host, "/var/lib/kmsd", _TOKENS, _STORE, "/var/log/kmsd", _TRAIL) == [
        *("kmsd:kmsd 700", "kmsd:kmsd 700", "kmsd:kmsd 600", "kmsd:kmsd 700", "kmsd:kmsd 600")
    ]
    assert _modes(host, "/etc/kmsd", "/etc/kmsd/policy.d", _SETTINGS, _PIN_FILE) == [
        *("root:root 755", "root:root 755", "root:root 644", "root:kmsd 640")
    ]
    assert not host.path(_PIN_BESIDE).exists()


def test_a_second_run_changes_nothing_and_says_what_it_found(host: PrivateHost) -> None:
    host.init()
    before = _files(host)
    again = host.init()
    assert (again.returncode, again.stderr) == (0, "")
    assert "made" not in again.stdout.split()
    assert _files(host) == before


def test_never_shows_the_pin(host: PrivateHost) -> None:
    ran = host.init()
    assert host.path(_PIN_FILE).read_text() not in ran.stdout + ran.stderr
    assert not list(host.top.rglob("core*"))


def test_says_how_to_start_by_hand_where_systemd_does_not_run(host: PrivateHost) -> None:
    said = host.init().stdout
    assert "Not started: systemd is not running here. Start it by hand, as root: kmsd serve" in said


def test_stores_the_pin_as_a_credential_where_systemd_would_pass_it(host: PrivateHost) -> None:
    """With systemd the PIN is only in the credential, which opens the token."""
    host.boots_systemd()
    ran = host.init()
    if "not as a credential" in ran.stdout:
        pytest.skip("systemd-creds does not work here")
    assert _modes(host, "/etc/credstore.encrypted", _CREDENTIAL) == ["root:root 700", "root:root 600"]
    assert not host.path(_PIN_BESIDE).exists()
    assert not host.path(_PIN_FILE).exists()
    pin = host.run("systemd-creds", "decrypt", "--name=hsm-pin", _CREDENTIAL, "-").stdout
    assert _opens(host, pin)
    before = _files(host)
    assert host.init().returncode == 0
    assert _files(host) == before


def test_stores_the_pin_in_a_file_where_no_credential_can_be_made(module_path: Path) -> None:
    """The file opens the token, and the words say that it is in clear."""
    host = PrivateHost(module_path / "no-creds", without=["systemd-creds"])
    host.boots_systemd()
    ran = host.init()
    assert ran.returncode == 0, ran.stderr
    assert f"{_PIN_FILE}: the PIN in clear" in ran.stdout
    assert _opens(host, host.path(_PIN_FILE).read_text())


def test_keeps_the_pin_of_a_new_token_beside_a_foreign_one(host: PrivateHost) -> None:
    """A stored PIN of something else is neither used nor replaced, and no token is made beside it."""
    host.path("/etc/kmsd").mkdir()
    host.path(_PIN_FILE).write_text("somebody else's")
    host.path(_PIN_FILE).chmod(0o640)
    ran = host.init()
    assert ran.returncode == 1
    assert f"{_PIN_FILE} holds the PIN of a token that is not there" in ran.stderr
    assert host.path(_PIN_FILE).read_text() == "somebody else's"
    assert not host.path(_TOKENS).exists()


def test_makes_no_new_token_for_a_store(host: PrivateHost) -> None:
    """A token that is gone is missed, whatever else is gone with it; it works again when it is back."""
    host.init()
    tokens, away = host.path(_TOKENS), host.path("/var/lib/away")
    tokens.rename(away)
    for path in (_PIN_FILE, _SETTINGS, _TRAIL):
        host.path(path).rename(host.path(f"{path}.away"))
    ran = host.init()
    assert ran.returncode == 1
    assert "put it back from a backup" in ran.stderr
    assert not tokens.exists()


def test_never_replaces_the_pin_of_a_token_that_was_moved_away(host: PrivateHost) -> None:
    """A PIN beside a token's place may be the only one that opens what was there."""
    folder = host.path("/var/lib/kmsd/token")
    host.run("useradd", "--system", "--user-group", "kmsd")
    folder.mkdir(parents=True)
    (folder / "pin").write_text("1234")
    host.run("chown", "-R", "kmsd:", "/var/lib/kmsd")
    host.run("chmod", "-R", "go=", "/var/lib/kmsd")
    ran = host.init()
    assert ran.returncode == 1
    assert "is the PIN of a token that is not there" in ran.stderr
    assert (folder / "pin").read_text() == "1234"


def test_finds_no_directory_that_is_a_link_or_somebody_elses(host: PrivateHost) -> None:
    """A state directory that others could look into or replace is refused before anything is in it."""
    state = host.path("/var/lib/kmsd")
    state.symlink_to("/var/log")
    assert "is no directory: move it away" in host.init().stderr
    state.unlink()
    state.mkdir()
    os.chown(state, 1, 1)
    assert "belongs to uid 1" in host.init().stderr
    assert state.stat().st_uid == 1
    state.rmdir()
    os.chown(host.path("/var/lib"), 1, 1)
    assert "others than root can replace it" in host.init().stderr


def test_finishes_a_directory_that_an_interrupted_run_left_closed(host: PrivateHost) -> None:
    """The service has to read its settings, also when a run was killed before it opened their directory."""
    host.path("/etc/kmsd").mkdir(mode=0o700)
    assert host.init().returncode == 0
    assert _modes(host, "/etc/kmsd") == ["root:root 755"]


def test_loosens_no_directory(host: PrivateHost) -> None:
    host.path("/etc/kmsd").mkdir()
    host.path("/etc/kmsd").chmod(0o770)
    host.path("/etc/kmsd/policy.d").mkdir()
    host.init()
    assert _modes(host, "/etc/kmsd") == ["root:root 750"]


def test_lets_nobody_else_of_the_services_group_read_the_pin(host: PrivateHost) -> None:
    host.run("useradd", "--system", "--user-group", "kmsd")
    host.run("usermod", "-aG", "kmsd", "games")
    ran = host.init()
    assert ran.returncode == 1
    assert "games is in it too" in ran.stderr
    assert not host.path(_PIN_FILE).exists()
    assert _opens(host, host.path(_PIN_BESIDE).read_text())


def test_another_settings_file_gets_no_units_and_no_credential_of_theirs(host: PrivateHost) -> None:
    """The units read the usual settings, so that others are started by hand, and have a PIN of their own."""
    host.boots_systemd()
    host.path("/etc/other").mkdir()
    host.path("/etc/credstore.encrypted").mkdir(mode=0o700)
    host.path(_CREDENTIAL).write_text("of the units")
    ran = host.init("--config", "/etc/other/kmsd.toml")
    assert ran.returncode == 0, ran.stderr
    assert "kmsd serve --config /etc/other/kmsd.toml" in ran.stdout
    assert _opens(host, host.path("/etc/other/hsm-pin").read_text())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "say what becomes of the keys when the token is lost"),
        (("--recovery", "none", "--module", "/x.so"), "--module needs --token-label"),
        (("--recovery", "none", "--module", "x.so"), "by its whole path"),
        (("--recovery", "none", "--module", "/x.so", "--token-label", "x"), "--module needs --pin-file"),
        (("--recovery", "none", "--pin-file", "x"), "belong to --module"),
    ],
)
def test_a_command_line_that_lacks_something_is_explained(
    host: PrivateHost, options: tuple[str, ...], words: str
) -> None:
    """Nothing is done, and the words say what to add."""
    before = _files(host)
    ran = host.run(str(_SCRIPTS / "kmsd"), "init", "--non-interactive", *options)
    assert ran.returncode == 2
    assert words in ran.stderr
    assert _files(host) == before


def test_settings_that_name_another_token_are_left_alone(host: PrivateHost) -> None:
    host.init()
    before = _files(host)
    ran = host.init("--module", "/usr/lib/vendor.so", "--token-label", "hsm", "--pin-file", "/dev/null")
    assert ran.returncode == 1
    assert "kmsd init changes no settings: leave --module out, or move the file away" in ran.stderr
    assert _files(host) == before


def test_settings_without_a_token_are_left_alone(host: PrivateHost) -> None:
    host.path("/etc/kmsd").mkdir()
    host.path(_SETTINGS).write_text("[limits]\nconnections = 5\n")
    ran = host.init()
    assert ran.returncode == 1
    assert "names no token, and kmsd init changes no settings" in ran.stderr
    assert host.path(_SETTINGS).read_text() == "[limits]\nconnections = 5\n"


@pytest.mark.parametrize("has_key", [False, True])
def test_uses_a_vendors_token(host: PrivateHost, has_key: bool) -> None:
    """Its root key is made unless a fitting one is there, and its PIN is kept where the settings say."""
    token = _VendorToken(host)
    if has_key:
        token.make_key(extractable=False)
    token.write_settings(f"file:{_PIN_FILE}")
    ran = host.init(*token.options)
    assert ran.returncode == 0, ran.stderr
    assert f"{'found' if has_key else 'made'}  root key 'kmsd-root' in the token 'vendor'" in ran.stdout
    assert host.path(_PIN_FILE).read_text() == token.pin
    assert _modes(host, _PIN_FILE) == ["root:kmsd 640"]
    before = _files(host)
    assert host.init().returncode == 0
    assert _files(host) == before


def test_a_key_of_that_name_that_does_not_fit_is_refused(host: PrivateHost) -> None:
    token = _VendorToken(host)
    token.make_key(extractable=True)
    ran = host.init(*token.options)
    assert ran.returncode == 1
    assert "cannot be the root key" in ran.stderr
    assert not host.path(_STORE).exists()


def test_a_token_without_aes_gcm_is_refused(host: PrivateHost) -> None:
    token = _VendorToken(host, "slots.mechanisms = CKM_AES_CBC,CKM_AES_KEY_GEN\n")
    ran = host.init(*token.options)
    assert ran.returncode == 1
    assert "cannot wrap with AES-GCM" in ran.stderr


def test_a_wrong_pin_is_tried_once_and_not_kept(host: PrivateHost) -> None:
    """The words say what to do; nothing keeps the wrong PIN, and the right one then finishes."""
    token = _VendorToken(host)
    token.write_settings(f"file:{_PIN_FILE}")
    options = [word if word != "/var/lib/vendor/pin" else "-" for word in token.options]
    ran = host.init(*options, given="wrong-pin-1\n")
    assert ran.returncode == 1
    assert "refused the PIN: correct it before the next try" in ran.stderr
    assert "wrong-pin-1" not in ran.stdout + ran.stderr
    assert not host.path(_PIN_FILE).exists()
    assert host.init(*options, given=f"{token.pin}\n").returncode == 0
    assert host.path(_PIN_FILE).read_text() == token.pin


def test_the_stored_pin_of_another_token_is_not_tried(host: PrivateHost) -> None:
    """It would cost a vendor's token one of its few tries, at this start and at each of the daemon's."""
    token = _VendorToken(host)
    host.path("/etc/kmsd").mkdir()
    host.path(_PIN_FILE).write_text("left from before")
    host.path(_PIN_FILE).chmod(0o640)
    ran = host.init(*token.options)
    assert ran.returncode == 1
    assert f"{_PIN_FILE} holds another PIN than that of the token, and was not tried" in ran.stderr
    assert host.path(_PIN_FILE).read_text() == "left from before"


@pytest.fixture(scope="module")
def steps(module_path: Path) -> int:
    """How many things a whole run does."""
    return kill(PrivateHost(module_path / "whole"), 0, "--recovery", "none")


@pytest.mark.parametrize("number", range(_KILLS))
def test_a_run_that_was_killed_anywhere_is_finished_by_the_next(host: PrivateHost, steps: int, number: int) -> None:
    """What the killed run had finished stays as it is, and the PIN that is there in the end opens the token."""
    assert steps
    kill(host, 1 + number * (steps - 1) // max(_KILLS - 1, 1), "--recovery", "none")
    tokens = {path.name for path in host.path(_TOKENS).glob("*")}
    trail = host.path(_TRAIL).read_bytes() if host.path(_TRAIL).exists() else b""
    ran = host.init()
    assert ran.returncode == 0, ran.stderr
    assert not tokens or {path.name for path in host.path(_TOKENS).glob("*")} == tokens
    assert host.path(_TRAIL).read_bytes().startswith(trail)
    assert _modes(host, "/etc/kmsd", _SETTINGS, _PIN_FILE) == ["root:root 755", "root:root 644", "root:kmsd 640"]
    assert _opens(host, host.path(_PIN_FILE).read_text())
    assert not host.path(_PIN_BESIDE).exists()
    assert not list(host.path("/etc/kmsd").glob(".*"))
    assert "made" not in host.init().stdout.split()


def test_a_run_that_met_a_full_disk_is_finished_by_the_next(host: PrivateHost) -> None:
    """It says what it could not write, and the token that was made before is the one that is used."""
    host.run("useradd", "--system", "--user-group", "kmsd")
    kmsd = str(_SCRIPTS / "kmsd")
    # No file can be larger: a store is, a token is not.
    ran = host.run("prlimit", "--fsize=16384", kmsd, "init", "--non-interactive", "--recovery", "none")
    assert ran.returncode == 1
    assert "kmsd: error:" in ran.stderr
    assert "Traceback" not in ran.stderr
    [token] = host.path(_TOKENS).iterdir()
    assert host.init().returncode == 0
    assert list(host.path(_TOKENS).iterdir()) == [token]
    assert _opens(host, host.path(_PIN_FILE).read_text())


def test_starts_the_daemon_although_its_socket_is_there(host: PrivateHost) -> None:
    """Asked about several units, systemctl is content with one of them."""
    host.boots_systemd()
    programs = host.path("/var/lib/programs")
    programs.mkdir()
    systemctl = programs / "systemctl"
    systemctl.write_text(
        '#!/bin/sh\necho "$@" >> /var/lib/programs/asked\n[ "$1" != is-active ] || [ "$2" = kmsd.socket ]\n'
    )
    systemctl.chmod(0o755)
    path = f"PATH=/var/lib/programs:{os.environ['PATH']}"
    ran = host.run("env", path, str(_SCRIPTS / "kmsd"), "init", "--non-interactive", "--recovery", "none")
    assert ran.returncode == 0, ran.stderr
    assert "made  kmsd enabled and running" in ran.stdout
    assert (programs / "asked").read_text().endswith("enable --now kmsd.socket kmsd.service\n")


def test_a_vendors_module_reaches_what_it_is_given(host: PrivateHost) -> None:
    """Nothing of its own without being asked; what the options name becomes part of the settings."""
    token = _VendorToken(host)
    ran = host.init(*token.options)
    assert ran.returncode == 1
    assert "name them by --module-reads, --module-writes and --module-connects" in ran.stderr

    given = host.init(*token.options, "--module-writes", "/var/lib/vendor", "--module-connects", "local")

    assert given.returncode == 0, given.stderr
    hsm = tomllib.loads(host.path(_SETTINGS).read_text())["hsm"]
    assert (hsm["writable_paths"], hsm["connect"]) == (["/var/lib/vendor"], "local")
