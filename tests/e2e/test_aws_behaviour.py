"""The daemon's operations keep AWS KMS's rules, asked through the real client and, where no client would, by hand.

Sources: the service model (botocore) for limits and members, AWS's API reference for what each error means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from kmsd.api.errors import (
    AlreadyExistsError,
    DryRunOperationError,
    IncorrectKeyError,
    InvalidAliasNameError,
    InvalidArnError,
    InvalidCiphertextError,
    InvalidMarkerError,
    KmsError,
    LimitExceededError,
    MalformedPolicyDocumentError,
    NotFoundError,
    TagError,
    UnsupportedOperationError,
    ValidationError,
)
from kmsd.api.shapes import DataKeySpec, Tag
from kmsd_client import Client
from tests.support.dev_daemon import DevDaemon
from tests.support.raw_peer import RawPeer

NO_KEY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def raw(dev: DevDaemon) -> Iterator[RawPeer]:
    with RawPeer(dev.socket) as peer:
        yield peer


@pytest.fixture
def named(client: Client, key: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """All four forms in which a key can be named."""
    prefix, key_id = key.split("key/")
    alias = f"alias/all/forms_{key_id}"
    client.create_alias(alias_name=alias, target_key_id=key)
    return {"id": key_id, "arn": key, "alias": alias, "alias ARN": prefix + alias}


# Names of keys


def test_a_key_answers_to_all_its_names(client: Client, key: str, named: dict[str, str]) -> None:
    """Id, ARN, alias and alias ARN; every answer carries the ARN."""
    blob = client.encrypt(key_id=key, plaintext=b"text").ciphertext_blob
    for name in named.values():
        assert client.encrypt(key_id=name, plaintext=b"text").key_id == key
        assert client.decrypt(key_id=name, ciphertext_blob=blob).key_id == key
        assert client.generate_data_key(key_id=name, key_spec=DataKeySpec.AES_128).key_id == key
        assert client.re_encrypt(ciphertext_blob=blob, destination_key_id=name, source_key_id=name).key_id == key
        assert client.describe_key(key_id=name).key_metadata.arn == key


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("local-host-1", "local-host-2"), NotFoundError),
        (("local-host-1", ""), NotFoundError),
        ((":kms:", ":s3:"), InvalidArnError),
        (("arn:aws:", "arn:other:"), InvalidArnError),
        ((":key/", ":grant/"), InvalidArnError),
        ((":key/", ":key"), InvalidArnError),
        ((":key/", ":key/x"), NotFoundError),
        (("arn:", "ARN:"), NotFoundError),
    ],
)
def test_arns_that_are_not_ours_are_refused(
    client: Client, key: str, change: tuple[str, str], error: type[KmsError]
) -> None:
    """Another region, another service, another kind of resource, or no ARN at all."""
    with pytest.raises(error):
        client.encrypt(key_id=key.replace(*change), plaintext=b"text")


def test_a_key_of_another_account_is_not_here(client: Client, key: str) -> None:
    """Keys stay where they were made; nothing of another account is looked for."""
    other = key.split(":")
    other[4] = "000000000000"
    with pytest.raises(NotFoundError, match="account"):
        client.encrypt(key_id=":".join(other), plaintext=b"text")


@pytest.mark.parametrize("name", [NO_KEY, "alias/none", "none", "alias/", "mrk-1234", "\N{SNOWMAN}", "x" * 2048])
def test_names_that_no_key_has_are_not_found(client: Client, name: str) -> None:
    """Whatever form they have."""
    with pytest.raises(NotFoundError):
        client.encrypt(key_id=name, plaintext=b"text")


def test_upper_case_is_another_name(client: Client, key: str) -> None:
    """A key id has lower-case digits."""
    with pytest.raises(NotFoundError):
        client.encrypt(key_id=key.rpartition("/")[2].upper(), plaintext=b"text")


# Aliases


@pytest.mark.parametrize(
    "name", ["demo", "alias/", "alias/aws/mine", "alias/kmsd/mine", "alias/a b", "alias/\xe4", "Alias/x", "alias/x:y"]
)
def test_aliases_have_their_form(client: Client, key: str, name: str) -> None:
    """`alias/` and letters, digits, slash, underscore, dash; some names are the service's own."""
    with pytest.raises(InvalidAliasNameError):
        client.create_alias(alias_name=name, target_key_id=key)


def test_an_alias_is_made_once_and_only_for_a_key(client: Client, named: dict[str, str]) -> None:
    """The target is a key id or ARN that exists, no other alias."""
    with pytest.raises(AlreadyExistsError):
        client.create_alias(alias_name=named["alias"], target_key_id=named["id"])
    for target in (NO_KEY, named["alias"], named["alias ARN"]):
        with pytest.raises(NotFoundError):
            client.create_alias(alias_name="alias/second", target_key_id=target)
    with pytest.raises(NotFoundError):
        client.describe_key(key_id="alias/second")


def test_a_key_has_at_most_fifty_aliases(client: Client, key: str) -> None:
    """AWS's quota; another key's aliases do not count."""
    key_id = key.rpartition("/")[2]
    for number in range(50):
        client.create_alias(alias_name=f"alias/many/{key_id}/{number}", target_key_id=key)
    with pytest.raises(LimitExceededError):
        client.create_alias(alias_name=f"alias/many/{key_id}/50", target_key_id=key)


# Lists


def test_lists_come_in_pages(client: Client) -> None:
    """Every key once, whatever the size of the pages; a marker says where the next begins."""
    made = {client.create_key().key_metadata.arn for _ in range(5)}
    everything = [entry.key_arn for entry in client.list_keys(limit=1000).keys]
    for limit in (1, 2, 3, len(everything)):
        seen: list[str] = []
        marker = None
        while True:
            page = client.list_keys(limit=limit, marker=marker)
            assert len(page.keys) <= limit
            assert page.truncated == (page.next_marker is not None)
            seen += [entry.key_arn for entry in page.keys]
            marker = page.next_marker
            if marker is None:
                break
        assert seen == everything
    assert made <= set(everything)


def test_aliases_are_listed_by_name_and_of_one_key(client: Client, key: str) -> None:
    """In pages as well."""
    names = [f"alias/list/{key.rpartition('/')[2]}/{letter}" for letter in "cab"]
    for name in names:
        client.create_alias(alias_name=name, target_key_id=key)
    first = client.list_aliases(key_id=key, limit=2)
    rest = client.list_aliases(key_id=key, limit=2, marker=first.next_marker)

    assert [alias.alias_name for alias in first.aliases + rest.aliases] == sorted(names)
    assert (first.truncated, rest.truncated, rest.next_marker) == (True, False, None)
    assert {alias.target_key_id for alias in first.aliases} == {key.rpartition("/")[2]}


@pytest.mark.parametrize("marker", ["x", "AAAA", "MTo", "1:", "\N{SNOWMAN}", "MjphYmM=", "x" * 1024])
def test_markers_are_the_services_own(client: Client, marker: str) -> None:
    """Anything else is refused and not guessed at."""
    with pytest.raises(InvalidMarkerError):
        client.list_keys(marker=marker)
    with pytest.raises(InvalidMarkerError):
        client.list_aliases(marker=marker)


@pytest.mark.parametrize(("operation", "limits"), [("ListKeys", (0, -1, 1001)), ("ListAliases", (0, 101))])
def test_limits_have_limits(raw: RawPeer, operation: str, limits: tuple[int, ...]) -> None:
    """Those of AWS."""
    for limit in limits:
        assert raw.refusal(operation, {"Limit": limit})[0] == "ValidationException"


# Ciphertexts


def test_another_key_is_incorrect_before_anything_is_opened(client: Client, key: str) -> None:
    """IncorrectKeyException when a key is named that did not make the ciphertext, in Decrypt and ReEncrypt."""
    other = client.create_key().key_metadata.arn
    blob = client.encrypt(key_id=key, plaintext=b"text").ciphertext_blob
    with pytest.raises(IncorrectKeyError):
        client.decrypt(key_id=other, ciphertext_blob=blob)
    with pytest.raises(IncorrectKeyError):
        client.re_encrypt(source_key_id=other, ciphertext_blob=blob, destination_key_id=other)


def test_any_changed_byte_makes_a_ciphertext_invalid(client: Client, key: str) -> None:
    """All with the same error and no message. A changed key id names a key that does not exist."""
    blob = client.encrypt(key_id=key, plaintext=b"text", encryption_context={"a": "b"}).ciphertext_blob
    for position in range(len(blob)):
        changed = bytearray(blob)
        changed[position] ^= 0x01
        with pytest.raises((InvalidCiphertextError, NotFoundError)) as caught:
            client.decrypt(ciphertext_blob=bytes(changed), encryption_context={"a": "b"})
        if not 1 <= position <= 16:
            assert isinstance(caught.value, InvalidCiphertextError)
            assert caught.value.message == ""


@pytest.mark.parametrize("blob", [b"\0", b"\1", b"\1" * 85, b"\1" * 86, b"\2" * 200, bytes(6144)])
def test_what_is_no_ciphertext_is_invalid_or_names_no_key(client: Client, blob: bytes) -> None:
    """Whatever its length."""
    with pytest.raises((InvalidCiphertextError, NotFoundError)):
        client.decrypt(ciphertext_blob=blob)


@pytest.mark.parametrize("cut", [1, 16, 100])
def test_a_shortened_or_lengthened_ciphertext_is_invalid(client: Client, key: str, cut: int) -> None:
    """By a byte, a tag, or more."""
    blob = client.encrypt(key_id=key, plaintext=b"t" * 200).ciphertext_blob
    for wrong in (blob[:-cut], blob + bytes(cut)):
        with pytest.raises(InvalidCiphertextError):
            client.decrypt(ciphertext_blob=wrong)


@pytest.mark.parametrize(
    "context", [{}, {"a": "c"}, {"A": "b"}, {"a": "b", "c": ""}, {"a": "b "}, {"b": "a"}, {"ab": ""}, {"": "ab"}]
)
def test_another_encryption_context_makes_a_ciphertext_invalid(
    client: Client, key: str, context: dict[str, str]
) -> None:
    """Case, blanks and additional pairs count, the order of pairs does not."""
    blob = client.encrypt(key_id=key, plaintext=b"text", encryption_context={"a": "b"}).ciphertext_blob
    with pytest.raises(InvalidCiphertextError) as caught:
        client.decrypt(ciphertext_blob=blob, encryption_context=context)

    assert caught.value.message == ""


def test_the_order_of_pairs_does_not_matter(client: Client, key: str) -> None:
    """An encryption context is a map."""
    blob = client.encrypt(key_id=key, plaintext=b"text", encryption_context={"a": "1", "b": "2"}).ciphertext_blob

    assert bytes(client.decrypt(ciphertext_blob=blob, encryption_context={"b": "2", "a": "1"}).plaintext) == b"text"


def test_re_encryption_moves_to_another_key_and_context(client: Client, key: str) -> None:
    """The old ciphertext stays what it is."""
    other = client.create_key().key_metadata.arn
    blob = client.encrypt(key_id=key, plaintext=b"text", encryption_context={"v": "1"}).ciphertext_blob
    moved = client.re_encrypt(
        ciphertext_blob=blob,
        source_encryption_context={"v": "1"},
        destination_key_id=other,
        destination_encryption_context={"v": "2"},
    )
    opened = client.decrypt(ciphertext_blob=moved.ciphertext_blob, encryption_context={"v": "2"}, key_id=other)

    assert (moved.source_key_id, moved.key_id) == (key, other)
    assert bytes(opened.plaintext) == b"text"
    assert opened.key_material_id == moved.destination_key_material_id
    with pytest.raises(InvalidCiphertextError):
        client.re_encrypt(ciphertext_blob=blob, destination_key_id=other)


# Dry runs


def test_a_dry_run_tells_that_it_would_have_succeeded(client: Client, key: str) -> None:
    """By an error of its own; what would have failed fails with its real error."""
    blob = client.encrypt(key_id=key, plaintext=b"text").ciphertext_blob
    for attempt in (
        lambda: client.encrypt(key_id=key, plaintext=b"text", dry_run=True),
        lambda: client.decrypt(ciphertext_blob=blob, dry_run=True),
        lambda: client.re_encrypt(ciphertext_blob=blob, destination_key_id=key, dry_run=True),
        lambda: client.generate_data_key(key_id=key, number_of_bytes=32, dry_run=True),
        lambda: client.generate_data_key_without_plaintext(key_id=key, number_of_bytes=32, dry_run=True),
    ):
        with pytest.raises(DryRunOperationError):
            attempt()
    with pytest.raises(NotFoundError):
        client.encrypt(key_id=NO_KEY, plaintext=b"text", dry_run=True)


# Data keys and random bytes


def test_a_data_keys_length_is_given_in_exactly_one_way(client: Client, key: str) -> None:
    """By KeySpec or by NumberOfBytes, from 1 to 1024."""
    both: dict[str, Any] = {"key_spec": DataKeySpec.AES_256, "number_of_bytes": 32}
    for members in ({}, both):
        with pytest.raises(ValidationError):
            client.generate_data_key(key_id=key, **members)
        with pytest.raises(ValidationError):
            client.generate_data_key_without_plaintext(key_id=key, **members)
    for number in (0, -1, 1025):
        with pytest.raises(ValidationError):
            client.generate_data_key(key_id=key, number_of_bytes=number)
    for number in (1, 1024):
        assert len(client.generate_data_key(key_id=key, number_of_bytes=number).plaintext) == number
    assert len(client.generate_data_key(key_id=key, key_spec=DataKeySpec.AES_128).plaintext) == 16


def test_a_data_keys_two_forms_are_the_same_key(client: Client, key: str) -> None:
    """And each is fresh."""
    made = [client.generate_data_key(key_id=key, number_of_bytes=32, encryption_context={"a": "b"}) for _ in range(3)]
    for one in made:
        opened = client.decrypt(ciphertext_blob=one.ciphertext_blob, encryption_context={"a": "b"})
        assert bytes(opened.plaintext) == bytes(one.plaintext)
    assert len({bytes(one.plaintext) for one in made}) == 3


def test_random_bytes_come_in_any_length_up_to_32_kib(client: Client) -> None:
    """And are different each time."""
    for number in (1, 1024, 32 * 1024):
        first, second = (bytes(client.generate_random(number_of_bytes=number).plaintext) for _ in range(2))
        assert len(first) == len(second) == number
        assert number == 1 or first != second
    for number in (0, -1, 32 * 1024 + 1, 2**63):
        with pytest.raises(ValidationError):
            client.generate_random(number_of_bytes=number)


# Shapes


@pytest.mark.parametrize("size", [1, 4095, 4096])
def test_plaintexts_have_1_to_4096_bytes(client: Client, key: str, size: int) -> None:
    """And come back as they were."""
    plaintext = os.urandom(size)
    blob = client.encrypt(key_id=key, plaintext=plaintext).ciphertext_blob

    assert bytes(client.decrypt(ciphertext_blob=blob).plaintext) == plaintext
    assert plaintext not in blob or size == 1


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ({}, "KeyId"),
        ({"KeyId": "k"}, "Plaintext"),
        ({"KeyId": "k", "Plaintext": b""}, "$.Plaintext"),
        ({"KeyId": "k", "Plaintext": b"x" * 4097}, "$.Plaintext"),
        ({"KeyId": "k", "Plaintext": "text"}, "$.Plaintext"),
        ({"KeyId": "k", "Plaintext": None}, "$.Plaintext"),
        ({"KeyId": "", "Plaintext": b"x"}, "$.KeyId"),
        ({"KeyId": "x" * 2049, "Plaintext": b"x"}, "$.KeyId"),
        ({"KeyId": 7, "Plaintext": b"x"}, "$.KeyId"),
        ({"KeyId": None, "Plaintext": b"x"}, "$.KeyId"),
        ({"KeyId": "k", "Plaintext": b"x", "Unknown": 1}, "Unknown"),
        ({"KeyId": "k", "Plaintext": b"x", "keyId": "k"}, "keyId"),
        ({"KeyId": "k", "Plaintext": b"x", "EncryptionContext": ["a"]}, "$.EncryptionContext"),
        ({"KeyId": "k", "Plaintext": b"x", "EncryptionContext": {"a": 1}}, "$.EncryptionContext"),
        ({"KeyId": "k", "Plaintext": b"x", "EncryptionContext": {1: "a"}}, "$.EncryptionContext"),
        ({"KeyId": "k", "Plaintext": b"x", "EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}, "$.EncryptionAlgorithm"),
        ({"KeyId": "k", "Plaintext": b"x", "GrantTokens": ["t"] * 11}, "$.GrantTokens"),
        ({"KeyId": "k", "Plaintext": b"x", "GrantTokens": [""]}, "$.GrantTokens"),
        ({"KeyId": "k", "Plaintext": b"x", "DryRun": "yes"}, "$.DryRun"),
        ({"KeyId": "k", "Plaintext": b"x", "DryRun": 1}, "$.DryRun"),
        ([], ""),
        ("", ""),
        (7, ""),
        (None, ""),
    ],
)
def test_members_of_another_shape_are_refused(raw: RawPeer, members: Any, where: str) -> None:
    """ValidationException that says where; the connection goes on."""
    code, message = raw.refusal("Encrypt", members)

    assert code == "ValidationException"
    assert where in message
    assert raw.ask("GenerateRandom", {"NumberOfBytes": 8})["result"]


def test_a_refusal_does_not_repeat_what_was_sent(raw: RawPeer, dev: DevDaemon) -> None:
    """A plaintext in the wrong place appears neither in the answer nor in the trail."""
    secret = "swordfish-secret"  # noqa: S105 - to be looked for
    refused = [
        raw.refusal("Encrypt", {"KeyId": "k", "Plaintext": secret}),
        raw.refusal("Encrypt", {"KeyId": "k", "Plaintext": b"x", "EncryptionAlgorithm": secret}),
        raw.refusal("Encrypt", {"KeyId": {secret: secret}, "Plaintext": b"x"}),
        raw.refusal("Encrypt", secret),
    ]

    assert secret not in str(refused)
    assert secret.encode() not in dev.audit_log.read_bytes()
    assert secret not in dev.said()


@pytest.mark.parametrize("name", ["encrypt", "", "DeleteKey", "kms:Encrypt", "x" * 64])
def test_operations_nobody_declared_are_refused(raw: RawPeer, name: str) -> None:
    """By their exact name, and the connection goes on."""
    assert raw.refusal(name, {})[0] == "UnknownOperationException"
    assert raw.ask("GenerateRandom", {"NumberOfBytes": 8})["result"]


def test_odd_text_in_a_context_is_taken_as_it_is(client: Client, key: str, dev: DevDaemon) -> None:
    """Any Unicode, empty names and values, line feeds and control characters; the trail stays one line a record."""
    context = {"": "", "\n": "\r\n", "\0": "\x1b[2J", "\N{SNOWMAN}": "\u202e\U0001f512", "x" * 300: "y" * 3000}
    blob = client.encrypt(key_id=key, plaintext=b"text", encryption_context=context).ciphertext_blob

    assert bytes(client.decrypt(ciphertext_blob=blob, encryption_context=context).plaintext) == b"text"
    assert dev.records()[-1]["requestParameters"]["encryptionContext"] == context


def test_a_context_as_large_as_a_frame_is_served_or_refused(raw: RawPeer, key: str) -> None:
    """At its edge, without harm to the connection."""
    for size in (60_000, 65_000, 65_535):
        pairs = {"c": "v" * size}
        reply = raw.ask("Encrypt", {"KeyId": key, "Plaintext": b"x", "EncryptionContext": pairs})
        assert "result" in reply or reply["error"]["code"] == "ValidationException"


def test_surrogates_are_no_text(raw: RawPeer, key: str) -> None:
    """Bytes that are not UTF-8 where text belongs."""
    body = b"\x83\xa2id\x01\xa2op\xa7Encrypt\xa6params\x81\xa5KeyId\xa3\xed\xa0\x80"
    raw.send(len(body).to_bytes(4, "big") + body)
    reply = raw.reply()

    assert reply is not None
    assert reply["error"]["code"] == "ValidationException"


# Making keys


def test_a_new_key_is_as_asked_for(client: Client) -> None:
    """And enabled, with the defaults of AWS."""
    made = client.create_key(description="for backups", tags=[Tag(tag_key="team", tag_value="a")]).key_metadata
    told = client.describe_key(key_id=made.key_id).key_metadata

    assert told == made
    assert told.enabled
    assert (told.description, told.key_state, told.key_spec) == ("for backups", "Enabled", "SYMMETRIC_DEFAULT")
    assert (told.key_usage, told.origin, told.key_manager) == ("ENCRYPT_DECRYPT", "AWS_KMS", "CUSTOMER")
    assert told.arn == f"arn:aws:kms:local-host-1:{told.account_id}:key/{told.key_id}"
    assert len(told.account_id) == 12
    assert len(bytes.fromhex(told.current_key_material_id)) == 32


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"KeySpec": "RSA_2048"}, "ValidationException"),
        ({"KeyUsage": "SIGN_VERIFY"}, "ValidationException"),
        ({"Origin": "EXTERNAL"}, "ValidationException"),
        ({"MultiRegion": True}, "UnsupportedOperationException"),
        ({"Description": "x" * 8193}, "ValidationException"),
        ({"Tags": [{"TagKey": "a", "TagValue": "1"}, {"TagKey": "a", "TagValue": "2"}]}, "TagException"),
        ({"Tags": [{"TagKey": "aws:a", "TagValue": "1"}]}, "TagException"),
        ({"Tags": [{"TagKey": "", "TagValue": "1"}]}, "ValidationException"),
        ({"Tags": [{"TagKey": "a"}]}, "ValidationException"),
        ({"Tags": [{"TagKey": str(n), "TagValue": ""} for n in range(51)]}, "ValidationException"),
        ({"Policy": "no JSON"}, "MalformedPolicyDocumentException"),
        ({"Policy": "{}"}, "MalformedPolicyDocumentException"),
        ({"Policy": ""}, "ValidationException"),
        ({"Policy": "x" * 131073}, "ValidationException"),
        ({"Policy": " " * 32769}, "LimitExceededException"),
    ],
)
def test_keys_that_cannot_be_made_are_refused(raw: RawPeer, members: dict[str, Any], code: str) -> None:
    """With the error that AWS has for it, and no key is made."""
    before = raw.ask("ListKeys", {"Limit": 1000})["result"]["Keys"]

    assert raw.refusal("CreateKey", members)[0] == code
    assert raw.ask("ListKeys", {"Limit": 1000})["result"]["Keys"] == before


def test_a_policy_that_locks_everybody_out_has_to_be_wanted(client: Client) -> None:
    """AWS's safety check, and the member that passes it by."""
    nobody = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Principal": {"Unix": "uid:4000000"}, "Action": "kms:*", "Resource": "*"}
            ],
        }
    )
    with pytest.raises(MalformedPolicyDocumentError):
        client.create_key(policy=nobody)
    made = client.create_key(policy=nobody, bypass_policy_lockout_safety_check=True)

    assert made.key_metadata.enabled


def test_errors_have_their_types(client: Client) -> None:
    """The client raises the class that the code stands for."""
    with pytest.raises(TagError):
        client.create_key(tags=[Tag(tag_key="aws:x", tag_value="")])
    with pytest.raises(UnsupportedOperationError):
        client.create_key(multi_region=True)
