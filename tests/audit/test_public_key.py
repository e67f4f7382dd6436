"""The audit key's public part as text."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from kmsd.audit.public_key import from_text, to_pem
from tests.support.written_trail import Key

KEY = Key().public


def test_pem_is_what_other_tools_read_and_write() -> None:
    """The library's own reader and writer agree."""
    loaded = load_pem_public_key(to_pem(KEY).encode())
    assert isinstance(loaded, Ed25519PublicKey)
    assert loaded.public_bytes(Encoding.Raw, PublicFormat.Raw) == KEY

    assert from_text(loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()) == KEY


@pytest.mark.parametrize(
    "text",
    [KEY.hex(), KEY.hex().upper() + "\n", base64.b64encode(KEY).decode(), "Key of host a:\n" + to_pem(KEY)],
)
def test_other_forms_are_read(text: str) -> None:
    """Hex and base64, and PEM with words around it."""
    assert from_text(text) == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        KEY.hex()[:-2],
        base64.b64encode(KEY[:-1]).decode(),
        to_pem(KEY).replace("MCow", "!!!!"),
        X25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        "-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(KEY).decode() + "\n-----END PUBLIC KEY-----",
    ],
)
def test_what_is_no_ed25519_key_is_refused(text: str) -> None:
    """Also a key of another kind of the same length."""
    with pytest.raises(ValueError, match="no Ed25519 public key"):
        from_text(text)
