"""Whom a grant names: principals as policies have them, but for those that a grant cannot be for.

A grant is for one known principal: not for everybody, which is a policy's business, and not for a program, which
proves nothing about who calls. A user or group has to exist when it is named, and what it resolved to then is kept
beside the name: where the name later leads elsewhere, the grant is suspended, so that a recycled account inherits
nothing (DESIGN 5).
"""

from __future__ import annotations

from kmsd.access.grammar import as_unix
from kmsd.identity.principals import ADMINISTRATORS, Names, Principal, PrincipalKind, parse_principal

_NAMED = ("user:", "group:")


def read_grantee(text: str, *, account: str, names: Names) -> Principal:
    """Return the principal that a grant may name by `text`, which is one of a policy's, or an ARN of `account`.

    Raises ValueError with a message for people.
    """
    own = f"arn:aws:iam::{account}:"
    # The account's id alone is AWS's short form of its root.
    if text in {account, f"{own}root"}:
        return ADMINISTRATORS
    unix = as_unix(text)
    if text.startswith("arn:") and (unix == text or not text.startswith(own)):
        raise ValueError(f"{text!a:.80} is neither {own}root nor {own}user/NAME nor {own}role/unit/NAME")
    principal = parse_principal(unix, names)
    if principal.kind is PrincipalKind.ANY:
        raise ValueError('a grant is for one principal; for everybody, "*", write a statement in the key policy')
    if principal.kind is PrincipalKind.EXE:
        raise ValueError("exe: proves nothing about who calls; make the grant for a user, a group or a unit")
    if principal.name is not None and principal.value is None:
        raise ValueError(f"{unix!a:.80} does not exist on this host")
    return principal


def is_named(text: str) -> bool:
    """Tell whether `text`, which a grant was made with, is a name that may come to lead elsewhere."""
    return as_unix(text).startswith(_NAMED)


def stands(text: str, key: str, names: Names) -> bool:
    """Tell whether `text`, which a grant was made with, still means `key`, as which it was kept."""
    return not is_named(text) or parse_principal(as_unix(text), names).key == key
