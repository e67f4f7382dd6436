"""The host policy: the shipped default, the directory, names that come and go."""

import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from kmsd.access.decision import Authorizer, HostPolicy, HostPolicyError, NotAuthorizedError
from kmsd.access.policy import default_key_policy, parse_policy
from kmsd.api import OPERATIONS
from kmsd.identity.principals import Caller, Names
from tests.support.given_facts import NO_FACTS

ACCOUNT = "111122223333"
KEY = f"arn:aws:kms:local:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ALIAS = f"arn:aws:kms:local:{ACCOUNT}:alias/backup"

GivenNames = Callable[[dict[str, int], dict[str, int]], Names]


def person(uid: int, *groups: int, administrator: bool = False) -> Caller:
    return Caller(
        uid=uid,
        gid=uid,
        groups=frozenset(groups),
        pid=1,
        user=None,
        unit=None,
        exe=None,
        administrator=administrator,
    )


ALICE, MEMBER, ADMINISTRATOR = person(1000), person(1001, 500), person(0, administrator=True)
AUDITOR = person(1002, 501)


def document(effect: str, principal: str, action: str = "kms:CreateKey") -> str:
    statement = {"Effect": effect, "Principal": {"Unix": principal}, "Action": action, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def permits(host: HostPolicy, caller: Caller, action: str, resource: str = "*", **key: Any) -> bool:
    try:
        Authorizer(host).authorize(caller, action, resource=resource, key_policy=key.get("policy"), facts=NO_FACTS)
    except NotAuthorizedError:
        return False
    return True


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def put(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return path


@pytest.mark.parametrize(
    ("action", "resource", "everybody", "members", "administrators"),
    [
        ("kms:Status", "*", True, True, True),
        ("kms:GenerateRandom", "*", True, True, True),
        ("kms:ListKeys", "*", True, True, True),
        ("kms:ListAliases", "*", True, True, True),
        ("kms:CreateKey", "*", False, True, True),
        ("kms:CreateAlias", ALIAS, False, True, True),
        ("kms:GetAuditRecords", "*", False, False, True),
        ("kms:Encrypt", "*", False, False, False),
    ],
)
def test_the_shipped_host_policy(
    names: Names, action: str, resource: str, everybody: bool, members: bool, administrators: bool
) -> None:
    """Everybody may ask for what is no secret, kms-users may make and name keys, administrators may read the trail."""
    host = HostPolicy.load(None, account=ACCOUNT, names=names)

    assert [permits(host, who, action, resource) for who in (ALICE, MEMBER, ADMINISTRATOR)] == [
        everybody,
        members,
        administrators,
    ]


def test_auditors_read_the_trail_and_do_nothing_else(names: Names) -> None:
    """They need not be administrators, and are none."""
    host = HostPolicy.load(None, account=ACCOUNT, names=names)
    theirs = {action for one in OPERATIONS for action in one.actions if permits(host, AUDITOR, action)}
    everybodys = {action for one in OPERATIONS for action in one.actions if permits(host, ALICE, action)}

    assert theirs - everybodys == {"kms:GetAuditRecords", "kms:GetAuditAnchor"}


def test_a_policy_file_keeps_administrators_from_reading_the_trail(names: Names, directory: Path) -> None:
    """Then auditors alone read it."""
    put(directory, "auditors-only.json", document("Deny", "administrators", "kms:GetAuditRecords"))
    host = HostPolicy.load(directory, account=ACCOUNT, names=names)

    assert not permits(host, ADMINISTRATOR, "kms:GetAuditRecords")
    assert permits(host, AUDITOR, "kms:GetAuditRecords")


def test_without_their_group_nobody_is_an_auditor(given_names: GivenNames) -> None:
    """The shipped policy names a group that a host need not have."""
    host = HostPolicy.load(None, account=ACCOUNT, names=given_names({}, {}))

    assert not permits(host, AUDITOR, "kms:GetAuditRecords")


def test_every_operation_without_a_key_is_permitted_to_somebody(names: Names) -> None:
    """An operation that the shipped policy forgets could never be used."""
    host = HostPolicy.load(None, account=ACCOUNT, names=names)
    keyless = {action for one in OPERATIONS if one.key is None and one.resolves_keys for action in one.actions}

    assert {action for action in keyless if not permits(host, ADMINISTRATOR, action)} == set()


def test_the_shipped_host_policy_gives_nobody_another_ones_key(names: Names) -> None:
    """What a key's default policy delegates is not handed on: not even aliases of other people's keys."""
    host = HostPolicy.load(None, account=ACCOUNT, names=names)
    policy = parse_policy(default_key_policy(ACCOUNT, 4242), account=ACCOUNT, names=names)
    actions = {action for one in OPERATIONS if one.key or not one.resolves_keys for action in one.actions}

    assert "kms:CreateAlias" in actions
    assert not any(permits(host, MEMBER, action, KEY, policy=policy) for action in actions)


def test_a_directory_that_does_not_exist_adds_nothing(names: Names, tmp_path: Path) -> None:
    """The shipped default stands alone."""
    host = HostPolicy.load(tmp_path / "policy.d", account=ACCOUNT, names=names)

    assert permits(host, MEMBER, "kms:CreateKey")


def test_files_add_to_the_default(names: Names, directory: Path) -> None:
    """Allows and denies of all files count together; only `*.json` files that are not hidden are read."""
    put(directory, "20-alice.json", document("Allow", "user:alice"))
    put(directory, "30-bob.json", document("Deny", "user:bob"))
    put(directory, "40-off.json.disabled", "not JSON")
    put(directory, ".#50-editing.json", "not JSON")
    host = HostPolicy.load(directory, account=ACCOUNT, names=names)

    assert permits(host, ALICE, "kms:CreateKey")
    assert not permits(host, MEMBER, "kms:CreateKey")
    assert permits(host, ADMINISTRATOR, "kms:CreateKey")


def test_a_file_with_the_defaults_name_takes_its_place(names: Names, directory: Path) -> None:
    """So the shipped policy can be narrowed, to nothing at all even."""
    put(directory, "00-default.json", '{"Version": "2012-10-17", "Statement": []}')
    host = HostPolicy.load(directory, account=ACCOUNT, names=names)

    assert not permits(host, ADMINISTRATOR, "kms:CreateKey")
    assert not permits(host, ADMINISTRATOR, "kms:ListKeys")


def test_the_shipped_policy_can_be_copied_and_edited(names: Names, directory: Path) -> None:
    """It is an ordinary file of the directory's kind."""
    put(directory, "00-default.json", resources.files("kmsd.access").joinpath("host_policy.json").read_text("utf-8"))

    assert permits(HostPolicy.load(directory, account=ACCOUNT, names=names), MEMBER, "kms:CreateKey")


def test_a_decision_names_the_file(names: Names, directory: Path) -> None:
    """An administrator finds the statement by it."""
    put(directory, "20-alice.json", document("Allow", "user:alice"))
    host = HostPolicy.load(directory, account=ACCOUNT, names=names)
    rules = host.rules("kms:CreateKey", "*")

    assert [rule.rule for rule in (rules.allowed(MEMBER, NO_FACTS), rules.allowed(ALICE, NO_FACTS)) if rule] == [
        'host policy 00-default.json: "Administrators and kms-users may create keys" (statement 2)',
        "host policy 20-alice.json: statement 1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Version":\n', "host policy 20-bad.json: line 2 column 1: "),
        (
            document("Permit", "*"),
            'host policy 20-bad.json: line 1 column 52: statement 1, Effect: must be "Allow" or "Deny"',
        ),
        (" " * 32_769, "host policy 20-bad.json: A policy document may have at most 32768 bytes."),
        (document("Deny", "user:mallory"), "host policy 20-bad.json: statement 1: denies something to a user or group"),
    ],
    ids=["no JSON", "no policy", "too long", "denies nobody"],
)
def test_a_file_that_is_not_understood_stops_the_start(names: Names, directory: Path, text: str, message: str) -> None:
    """Without all of the host policy nothing may be decided; the message names the file."""
    put(directory, "20-bad.json", text)

    with pytest.raises(HostPolicyError) as refused:
        HostPolicy.load(directory, account=ACCOUNT, names=names)
    assert str(refused.value).startswith(message)


def test_a_file_that_is_not_text_stops_the_start(names: Names, directory: Path) -> None:
    """Another encoding is not guessed."""
    put(directory, "20-bad.json", "").write_bytes(b'{"\xff": 1}')

    with pytest.raises(HostPolicyError, match=r"20-bad\.json is not UTF-8"):
        HostPolicy.load(directory, account=ACCOUNT, names=names)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_stops_the_start(names: Names, directory: Path, mode: int) -> None:
    """Whoever may write it would be an administrator."""
    put(directory, "20-alice.json", document("Allow", "user:alice")).chmod(mode)

    with pytest.raises(HostPolicyError, match=r"20-alice\.json must belong to root or the daemon's user"):
        HostPolicy.load(directory, account=ACCOUNT, names=names)


def test_a_directory_that_others_may_write_stops_the_start(names: Names, directory: Path) -> None:
    """They could put files there."""
    directory.chmod(0o777)

    with pytest.raises(HostPolicyError, match="nobody else may write it"):
        HostPolicy.load(directory, account=ACCOUNT, names=names)


@pytest.mark.root
def test_a_file_of_another_user_stops_the_start(names: Names, directory: Path) -> None:
    """Its owner may write it at any time."""
    os.chown(put(directory, "20-alice.json", document("Allow", "user:alice")), 1000, 1000)

    with pytest.raises(HostPolicyError, match=r"20-alice\.json must belong to root"):
        HostPolicy.load(directory, account=ACCOUNT, names=names)


def test_a_pipe_in_the_directory_does_not_hang_the_start(names: Names, directory: Path) -> None:
    """It is refused, not waited for."""
    os.mkfifo(directory / "20-pipe.json", 0o600)

    with pytest.raises(HostPolicyError, match="not a regular file"):
        HostPolicy.load(directory, account=ACCOUNT, names=names)


def test_a_file_that_leads_nowhere_stops_the_start(names: Names, directory: Path) -> None:
    """A symbolic link whose target is missing may have been a Deny."""
    (directory / "20-gone.json").symlink_to(directory / "gone")

    with pytest.raises(HostPolicyError, match="cannot be read"):
        HostPolicy.load(directory, account=ACCOUNT, names=names)


def test_a_group_that_is_made_later_counts_from_then_on(given_names: GivenNames) -> None:
    """After the names are looked up again, without a restart."""
    host = HostPolicy.load(None, account=ACCOUNT, names=given_names({}, {}))

    assert not permits(host, MEMBER, "kms:CreateKey")
    host.resolve(given_names({}, {"kms-users": 500}))
    assert permits(host, MEMBER, "kms:CreateKey")


def test_a_name_that_moves_while_the_daemon_runs_is_suspended(given_names: GivenNames) -> None:
    """The account that has the old uid now inherits nothing, and a Deny goes on for both."""
    users = {"alice": 1000, "bob": 1001}
    host = HostPolicy(
        {
            "a.json": document("Allow", "user:alice"),
            "b.json": document("Deny", "user:bob", "kms:ListKeys"),
            "c.json": document("Allow", "*", "kms:ListKeys"),
        },
        account=ACCOUNT,
        names=given_names(users, {}),
    )
    assert permits(host, person(1000), "kms:CreateKey")
    assert not permits(host, person(1001), "kms:ListKeys")

    host.resolve(given_names({"alice": 1002, "bob": 1003}, {}))

    assert [permits(host, person(uid), "kms:CreateKey") for uid in (1000, 1002)] == [False, False]
    assert [permits(host, person(uid), "kms:ListKeys") for uid in (1001, 1003, 1004)] == [False, False, True]


def test_a_name_service_that_fails_takes_no_deny_away(given_names: GivenNames) -> None:
    """Who was denied something by name stays denied while the name is unknown."""
    users = {"bob": 1001}
    host = HostPolicy(
        {"a.json": document("Allow", "*"), "b.json": document("Deny", "user:bob")},
        account=ACCOUNT,
        names=given_names(users, {}),
    )
    host.resolve(given_names({}, {}))

    assert not permits(host, person(1001), "kms:CreateKey")
    assert permits(host, person(1002), "kms:CreateKey")
