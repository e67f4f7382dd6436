"""The names of keys: key ids, aliases and their ARNs."""

from __future__ import annotations

import re
from typing import NamedTuple

from kmsd.api.errors import InvalidAliasNameError, InvalidArnError, NotFoundError

_KEY_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
# AWS: an alias begins with alias/ and has letters, digits, '/', '_' and '-' after it.
_ALIAS = re.compile(r"alias/[a-zA-Z0-9/_-]+", re.ASCII)
# arn : partition : service : region : account : resource
_ARN_PARTS = 6
# AWS keeps alias/aws/ for the keys it manages itself; alias/kmsd/ is the same for kmsd.
_RESERVED = ("alias/aws/", "alias/kmsd/")


class KeyName(NamedTuple):
    """A key, named by its id."""

    key_id: str


class AliasName(NamedTuple):
    """A key, named by an alias such as `alias/backup`."""

    alias: str


class Arns:
    """Makes and reads the ARNs of one account (12 digits) and region."""

    def __init__(self, account: str, region: str) -> None:
        self.account = account
        self.region = region
        self._prefix = f"arn:aws:kms:{region}:{account}:"

    def key(self, key_id: str) -> str:
        """Return the ARN of a key."""
        return f"{self._prefix}key/{key_id}"

    def alias(self, name: str) -> str:
        """Return the ARN of an alias, whose name begins with alias/."""
        return self._prefix + name

    def parse(self, identifier: str) -> KeyName | AliasName:
        """Read a key id, key ARN, alias name or alias ARN.

        Raises InvalidArnError for a malformed ARN and NotFoundError for a name that no key of this service can have.
        """
        resource = self._resource_of(identifier) if identifier.startswith("arn:") else identifier
        if resource.startswith("alias/"):
            return AliasName(resource)
        if identifier.startswith("arn:"):
            kind, _, resource = resource.partition("/")
            if kind != "key":
                raise InvalidArnError(f"{identifier} is not the ARN of a key or an alias")
        if not _KEY_ID.fullmatch(resource):
            raise NotFoundError(f"Invalid keyId '{identifier}'")
        return KeyName(resource)

    def parse_key(self, identifier: str) -> KeyName:
        """Read a key id or key ARN where an alias is not accepted."""
        name = self.parse(identifier)
        if isinstance(name, AliasName):
            raise NotFoundError(f"Invalid keyId '{identifier}': this operation takes a key id or key ARN, no alias")
        return name

    def _resource_of(self, arn: str) -> str:
        parts = arn.split(":", _ARN_PARTS - 1)
        if len(parts) != _ARN_PARTS or parts[1] != "aws" or parts[2] != "kms":
            raise InvalidArnError(f"{arn} is not an ARN of the form {self._prefix}key/KEY-ID")
        if parts[3] != self.region or parts[4] != self.account:
            raise NotFoundError(f"{arn} is not here: this service is account {self.account}, region {self.region}")
        return parts[5]


def alias_in(identifier: str) -> str | None:
    """Return the alias, without account and region, that a valid identifier names a key by; None if it is no alias."""
    resource = identifier.split(":", _ARN_PARTS - 1)[-1]
    return resource if resource.startswith("alias/") else None


def check_alias(name: str) -> None:
    """Raise InvalidAliasNameError unless this is a name that people may give to keys, and take from them."""
    if not _ALIAS.fullmatch(name):
        raise InvalidAliasNameError(
            f"'{name}' is no alias name: it begins with alias/ and has letters, digits, '/', '_' and '-' after it"
        )
    if name.startswith(_RESERVED):
        raise InvalidAliasNameError(f"'{name}' is reserved: names that begin with {' or '.join(_RESERVED)} are kmsd's")
