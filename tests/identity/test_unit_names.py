"""Units out of control groups' paths: what systemd makes, and what users and services make below it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd.identity.units import UNDETERMINED, Units, unified_path, units_of

NONE = Units()
UNKNOWN_USER_UNIT = Units(undetermined=frozenset({"user_unit"}))
OF_1000 = "/user.slice/user-1000.slice/user@1000.service"


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/nginx.service", "nginx.service"),
        ("/system.slice/system-foo.slice/foo@bar.service", "foo@bar.service"),
        ("/system.slice/system-foo.slice/foo@bar.service/sub/cgroup", "foo@bar.service"),
        ("/system.slice/a.service/b.service", "a.service"),
        ("/system.slice/a.service/user@1000.service/b.service", "a.service"),
        ("/system.slice/a.service/ (deleted) x/y", "a.service"),
        ("/a.slice/a-b.slice/a-b-c.slice/x.service", "x.service"),
        ("/system.slice/dev-disk-by\\x2dlabel-a.swap", "dev-disk-by\\x2dlabel-a.swap"),
        ("/system.slice/srv-\\xc3\\xa4.mount", "srv-\\xc3\\xa4.mount"),
        ("/system.slice/cups.socket", "cups.socket"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/system.slice/__x.service", "_x.service"),
        ("/system.slice/_.x.service", ".x.service"),
        ("/system.slice/user@.x.service", None),
        ("/machine.slice/systemd-nspawn@x.service/payload/system.slice/nginx.service", "systemd-nspawn@x.service"),
        ("/machine.slice/systemd-nspawn@x.service/supervisor", "systemd-nspawn@x.service"),
        (
            "/system.slice/systemd-nspawn@x.service/payload/user.slice/user@0.service/b.service",
            "systemd-nspawn@x.service",
        ),
        ("/system.slice/docker.service", "docker.service"),
        (f"/system.slice/{'u' * 247}.service", f"{'u' * 247}.service"),
    ],
)
def test_the_first_group_that_is_no_slice_is_the_unit(path: str, unit: str | None) -> None:
    """Whatever lies below it belongs to it, whatever it is called."""
    assert units_of(path) == (UNDETERMINED if unit is None else Units(unit=unit))


@pytest.mark.parametrize(
    ("below", "user_unit"),
    [
        ("/app.slice/sync.service", "1000/sync.service"),
        ("/sync.service", "1000/sync.service"),
        ("/app.slice/app-x.slice/sync@1.service/a/b.service", "1000/sync@1.service"),
        ("/app.slice/nginx.service", "1000/nginx.service"),
        ("/system.slice/nginx.service", "1000/nginx.service"),
        ("/session.slice/user@0.service/system.slice/nginx.service", "1000/user@0.service"),
        ("/app.slice/_cpu.service", "1000/cpu.service"),
    ],
)
def test_units_below_a_users_manager_are_that_users(below: str, user_unit: str) -> None:
    """Never one of the system, whatever it is called: the user made it."""
    assert units_of(OF_1000 + below) == Units(user_unit=user_unit)


def test_the_uid_is_the_managers() -> None:
    """Its unit's name says it; its slice may be any."""
    assert units_of("/user.slice/user-7.slice/user@8.service/a.service") == Units(user_unit="8/a.service")
    assert units_of("/system.slice/user@8.service/a.service") == Units(user_unit="8/a.service")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/init.scope",
        "/user.slice/user-1000.slice/session-3.scope",
        "/user.slice/user-1000.slice/session-3.scope/nginx.service",
        "/machine.slice/machine-qemu\\x2d1.scope/libvirt/vcpu0",
        "/machine.slice/machine-x.scope/payload/system.slice/nginx.service",
        "/system.slice/docker-0123.scope/system.slice/nginx.service",
        f"{OF_1000}/init.scope",
        f"{OF_1000}/app.slice/app-firefox-1.scope/nginx.service",
    ],
)
def test_scopes_are_no_units(path: str) -> None:
    """A login or a container is in none, and neither is what it makes below itself."""
    assert units_of(path) == NONE


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nginx.service",
        "system.slice/nginx.service",
        "//nginx.service",
        "/system.slice//nginx.service",
        "/system.slice/nginx.service/",
        "/..",
        "/../system.slice/nginx.service",
        "/../../nginx.service",
        "/system.slice/../nginx.service",
        "/system.slice/./nginx.service",
        "/system.slice/nginx.service (deleted)",
        "/system.slice",
        "/system.slice/",
        "/system.slice/a",
        "/system.slice/a/nginx.service",
        "/docker/0123/system.slice/nginx.service",
        "/lxc.payload.x/system.slice/nginx.service",
        "/system.slice/.service",
        "/system.slice/foo@.service",
        "/system.slice/a b.service",
        "/system.slice/\xe4.service",
        "/system.slice/a\n.service",
        "/system.slice/a.timer",
        f"/system.slice/{'u' * 248}.service",
        "/user.slice/user-1000.slice/user@alice.service/a.service",
        "/user.slice/user-1000.slice/user@01.service/a.service",
        "/user.slice/user-1000.slice/user@-1.service/a.service",
    ],
)
def test_what_systemd_does_not_make_is_undetermined(path: str) -> None:
    """Above our own view, removed, made by somebody else, or of no valid name."""
    assert units_of(path) == UNDETERMINED


@pytest.mark.parametrize("below", ["", "/app.slice", "/x", "/x/a.service", "/app.slice/a b.service"])
def test_what_a_user_made_of_his_own_groups_is_his_affair(below: str) -> None:
    """Whatever it is, it is no unit of the system."""
    assert units_of(OF_1000 + below) == UNKNOWN_USER_UNIT


NAME = st.sampled_from(
    ["nginx.service", "system.slice", "user@0.service", "x.scope", "..", ".", "", "a b", "_cpu.service", " (deleted)"]
)


@given(st.lists(NAME | st.text(max_size=8), max_size=6))
def test_nothing_below_a_unit_changes_it(names: list[str]) -> None:
    """A delegated service may make any folders, and at worst is not recognized any more."""
    below = "/".join(name.replace("/", "") for name in names)

    assert units_of(f"/system.slice/a.service/{below}") in (Units(unit="a.service"), UNDETERMINED)
    assert units_of(f"{OF_1000}/{below}").unit is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/system.slice/a.service\n", "/system.slice/a.service"),
        ("0::/\n", "/"),
        ("2:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n", "/system.slice/a.service"),
        ("1:name=systemd:/a.service\n0::/a.service\n", "/a.service"),
        ("0::/a:b.service\n", "/a:b.service"),
        ("2:cpu,cpuacct:/x\n", None),
        ("", None),
        ("nonsense\n", None),
    ],
)
def test_systemds_own_hierarchy_is_the_one_that_counts(text: str, path: str | None) -> None:
    """The unified one, and on older hosts the one it names."""
    assert unified_path(text) == path


@pytest.mark.parametrize("separator", ["\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_no_name_of_a_group_ends_its_line(separator: str) -> None:
    """The kernel takes every name without a newline: a user's own group is no second line about the system's."""
    path = f"{OF_1000}/a{separator}0::/system.slice/nginx.service"

    assert unified_path(f"0::{path}\n") == path
    assert units_of(path).unit is None
    assert unified_path(f"1:name=systemd:{path}\n0::/\n") == path


@given(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])))
def test_what_a_user_makes_is_read_as_it_is(below: str) -> None:
    """Whatever he calls it, it stays below his manager."""
    path = f"{OF_1000}/{below}"

    assert unified_path(f"0::{path}\n") == path
