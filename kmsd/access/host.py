"""The host policy: what an administrator allows and denies for the whole host, as IAM does for an AWS account.

It is the shipped default and the files of a directory, together. A file with the default's name takes its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from kmsd.access.document import MAX_BYTES
from kmsd.access.policy import Policy, PolicyKind, named_in, parse_policy
from kmsd.access.rules import Effect, Rules, RuleTable, Statement
from kmsd.api.errors import KmsError
from kmsd.identity.principals import Names

DEFAULT_NAME = "00-default.json"


class HostPolicyError(RuntimeError):
    """The host policy cannot be used; the message names the file. Without all of it nothing may be decided."""


class HostPolicy:
    """Host policy documents, compiled; `documents` are their texts by file name, `names` knows those `named` in them.

    A user or group that does not exist may be named in an Allow, which then allows nothing until it exists. In a Deny
    it is refused: whom it was meant to stop cannot be told. `resolve` takes names as they are later; one that has
    another id by then is suspended, as in a stored key policy. The documents stay what they were. Raises
    HostPolicyError.
    """

    def __init__(self, documents: Mapping[str, str], *, account: str, names: Names) -> None:
        self._documents = documents
        self._account = account
        self._resolved: dict[str, int] = {}
        statements = self._read(names)
        if lost := _lost_deny(statements):
            raise HostPolicyError(f"{lost.decision.rule}: denies something to a user or group that does not exist")
        self._table = RuleTable(statements)

    @staticmethod
    def documents_of(directory: Path | None) -> dict[str, str]:
        """Return the shipped default together with the `*.json` files of `directory`, if that exists.

        Raises HostPolicyError for a file that cannot be read, or that others than its owner (root or this process's
        user) may write.
        """
        documents = {DEFAULT_NAME: resources.files("kmsd.access").joinpath("host_policy.json").read_text("utf-8")}
        try:
            if directory is not None and directory.exists():
                _check_owner(directory.stat(), directory)
                files = sorted(path for path in directory.iterdir() if _is_policy_file(path.name))
                documents |= {path.name: _read_file(path) for path in files}
        except PermissionError as error:
            # A folder that is new since the daemon confined itself is out of its reach.
            raise HostPolicyError(
                f"the host policy cannot be read: {error}; if the folder was made or moved since kmsd started, restart "
                "kmsd"
            ) from error
        except OSError as error:
            raise HostPolicyError(f"the host policy cannot be read: {error}") from error
        return documents

    @staticmethod
    def named_in(documents: Mapping[str, str]) -> frozenset[str]:
        """Return the users and groups that documents name, as "user:x" and "group:x"; raises HostPolicyError."""
        return frozenset().union(*(_named(name, text) for name, text in documents.items()))

    @classmethod
    def load(cls, directory: Path | None, *, account: str, names: Names) -> HostPolicy:
        """Return the policy of `directory`, with the shipped default; raises HostPolicyError."""
        return cls(cls.documents_of(directory), account=account, names=names)

    @property
    def named(self) -> frozenset[str]:
        """The users and groups that it names."""
        return self.named_in(self._documents)

    @property
    def documents(self) -> list[str]:
        """The names of the documents' files."""
        return list(self._documents)

    @property
    def digest(self) -> str:
        """The SHA-256 of the documents with their names, in hexadecimal."""
        return hashlib.sha256(json.dumps(self._documents, sort_keys=True).encode()).hexdigest()

    def rules(self, action: str, resource: str) -> Rules:
        """Return the statements about `action` on `resource`."""
        return self._table.rules(action, resource)

    def resolve(self, names: Names) -> None:
        """Take the names that it names for what `names` says now; an id with which one was first seen stays its own."""
        self._table = RuleTable(self._read(names))

    def _read(self, names: Names) -> list[Statement]:
        statements: list[Statement] = []
        for name, text in self._documents.items():
            # A name keeps the id with which it was first seen.
            self._resolved = {**self._parse(name, text, names, None).principals, **self._resolved}
            statements += self._parse(name, text, names, self._resolved).statements
        return statements

    def _parse(self, name: str, text: str, names: Names, resolved: dict[str, int] | None) -> Policy:
        origin = _origin(name)
        try:
            return parse_policy(
                text, account=self._account, names=names, resolved=resolved, kind=PolicyKind.HOST, origin=origin
            )
        except KmsError as error:
            raise HostPolicyError(f"{origin}: {error.message}") from None


def _origin(name: str) -> str:
    return f"host policy {name}"


def _named(name: str, text: str) -> frozenset[str]:
    try:
        return named_in(text)
    except KmsError as error:
        raise HostPolicyError(f"{_origin(name)}: {error.message}") from None


def _lost_deny(statements: list[Statement]) -> Statement | None:
    """Return a Deny that names somebody who does not exist."""
    for statement in statements:
        if statement.effect is Effect.DENY and any(one.suspended for one in statement.principals):
            return statement
    return None


def _is_policy_file(name: str) -> bool:
    # A hidden file is an editor's.
    return name.endswith(".json") and not name.startswith(".")


def _read_file(path: Path) -> str:
    # Not blocking, so that a pipe in the directory is refused and not waited for.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise HostPolicyError(f"{path} is not a regular file")
        _check_owner(status, path)
        data = file.read(MAX_BYTES + 1)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise HostPolicyError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


def _check_owner(status: os.stat_result, path: Path) -> None:
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HostPolicyError(f"{path} must belong to root or the daemon's user, and nobody else may write it")
