"""What every request passes through: found, decoded, authorized, served, recorded, and only then answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any

import msgspec
import pytest

from kmsd.api import OPERATIONS, unsupported
from kmsd.api.administration import GET_AUDIT_RECORDS, STATUS, GetAuditRecordsRequest, StatusRequest
from kmsd.api.errors import (
    AccessDeniedError,
    AuditUnavailableError,
    DisabledError,
    KeyUnavailableError,
    KMSInternalError,
    NotFoundError,
    SealedError,
    ShuttingDownError,
    StorageError,
    UnknownOperationError,
    ValidationError,
)
from kmsd.api.keys import DESCRIBE_KEY, LIST_KEYS, DescribeKeyRequest, ListKeysRequest
from kmsd.api.operation import KeyState, Operation
from kmsd.api.symmetric import (
    DECRYPT,
    ENCRYPT,
    GENERATE_DATA_KEY,
    GENERATE_RANDOM,
    REENCRYPT,
    DecryptRequest,
    EncryptRequest,
    GenerateDataKeyRequest,
    GenerateRandomRequest,
    ReEncryptRequest,
)
from kmsd.audit.record import Kind
from kmsd.audit.writer import SyncMode
from kmsd.material.versions import NotLoadedError
from kmsd.service.batch import Batch
from kmsd.service.call import Call
from kmsd.store.base import Replace, StoreFormatError, StoreUnavailableError
from kmsd.wire.codec import Request
from tests.support.embedded import (
    ALICE,
    BOB,
    ROOT,
    Answer,
    Embedded,
    Gate,
    answers_in,
    kind_is,
    request_frame,
)

OpenService = Callable[..., Awaitable[Embedded]]
Asked = tuple[Operation[Any, Any], msgspec.Struct]
SECRET = b"what nobody else may see"


def encrypt(arn: str, plaintext: bytes = SECRET) -> EncryptRequest:
    return EncryptRequest(key_id=arn, plaintext=memoryview(plaintext))


async def change_state(service: Embedded, arn: str, state: KeyState) -> None:
    row = await service.store.key(arn.rpartition("/")[2])
    assert row is not None
    changed = {name: getattr(row, name) for name in row.__struct_fields__} | {"key_state": state, "version": 2}
    await service.store.commit("change", [Replace(type(row)(**changed))])
    service.records.forget_all()


async def test_a_name_nobody_declared_is_refused(service: Embedded) -> None:
    """The answer and the record carry a bounded piece of the peer's text."""
    batch = Batch()

    assert service.pipeline.serve(ALICE, Request(7, "X" * 200, memoryview(b"\x80")), batch) is None
    service.pipeline.finish(batch)

    [answer] = answers_in(batch.out)
    assert isinstance(answer.error, UnknownOperationError)
    assert answer.id == 7
    record = service.newest()
    assert record["eventName"] == "X" * 64
    assert record["errorCode"] == "UnknownOperationException"
    assert record["requestID"] == answer.error.request_id


async def test_nothing_of_a_batch_is_recorded_before_it_is_finished(service: Embedded) -> None:
    """The records of a batch are written together, and the replies wait for that."""
    arn = await service.make_key()
    await service.ask(ALICE, ENCRYPT, encrypt(arn))
    before, batch = service.trail.head[0], Batch()

    for identifier in range(1, 6):
        assert service.serve(ALICE, request_frame(ENCRYPT, encrypt(arn), identifier), batch) is None
    assert service.trail.head[0] == before
    service.pipeline.finish(batch)

    assert service.trail.head[0] == before + 5
    assert [answer.id for answer in answers_in(batch.out)] == [1, 2, 3, 4, 5]


async def test_a_batch_that_cannot_be_recorded_says_only_that(service: Embedded) -> None:
    """Every reply becomes the same error under its own id, and the buffer holds nothing of the former ones."""
    arn = await service.make_key()
    await service.ask(ALICE, ENCRYPT, encrypt(arn))
    batch = Batch()
    for identifier in (3, 9):
        service.serve(
            ALICE, request_frame(GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=64), identifier), batch
        )
    service.trail.refuses = lambda _: True

    service.pipeline.finish(batch)

    assert [(answer.id, type(answer.error)) for answer in answers_in(batch.out)] == [
        (3, AuditUnavailableError),
        (9, AuditUnavailableError),
    ]


async def test_a_batch_that_cannot_be_synced_says_only_that(open_service: OpenService) -> None:
    """With audit.sync = always a written record is not enough."""
    service = await open_service(sync=SyncMode.ALWAYS)
    assert service.pipeline.settles
    batch = Batch()
    service.serve(ALICE, request_frame(GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=64)), batch)
    service.pipeline.finish(batch)
    service.trail.unsyncable = True

    await service.pipeline.settle(batch)

    assert [type(answer.error) for answer in answers_in(batch.out)] == [AuditUnavailableError]


async def test_what_was_awaited_is_synced_too(open_service: OpenService) -> None:
    """A request that loaded something, or awaited the store, waits for the disk like the others."""
    service = await open_service(sync=SyncMode.ALWAYS)
    arn = await service.make_key()
    service.trail.unsyncable = True

    with pytest.raises(AuditUnavailableError):
        await service.ask(ALICE, ENCRYPT, encrypt(arn))
    with pytest.raises(AuditUnavailableError):
        await service.ask(ALICE, DESCRIBE_KEY, DescribeKeyRequest(key_id=arn))


async def test_an_unforeseen_fault_is_an_incident(open_service: OpenService) -> None:
    """The caller gets a request id, the log type and places; neither says what the exception or a variable said."""

    def fail(call: Call, request: GenerateRandomRequest) -> None:
        plaintext = SECRET.decode()
        raise ZeroDivisionError(f"while dividing {plaintext}")

    async def fail_later(call: Call, request: ListKeysRequest) -> None:
        fail(call, GenerateRandomRequest(number_of_bytes=1))

    service = await open_service(handlers={GENERATE_RANDOM: fail, LIST_KEYS: fail_later})
    asked: list[Asked] = [(GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=1)), (LIST_KEYS, ListKeysRequest())]
    for operation, request in asked:
        with pytest.raises(KMSInternalError) as told:
            await service.ask(ALICE, operation, request)

        said = service.log.getvalue()
        assert told.value.request_id in said
        assert "ZeroDivisionError" in said
        assert "test_service_pipeline.py" in said
        assert SECRET.decode() not in said
        assert SECRET.decode() not in str(told.value)
        record = service.newest()
        assert record["errorCode"] == "KMSInternalException"
        assert record["requestID"] == told.value.request_id
        assert SECRET.decode() not in str(record)


async def test_a_handler_that_answers_nonsense_is_an_incident(open_service: OpenService) -> None:
    """Also what a handler returns is not trusted to be what it declares."""

    async def answer_nonsense(call: Call, request: ListKeysRequest) -> object:
        return object()

    async def miss(call: Call, request: StatusRequest) -> None:
        raise NotLoadedError

    service = await open_service(handlers={LIST_KEYS: answer_nonsense, STATUS: miss})

    with pytest.raises(KMSInternalError):
        await service.ask(ALICE, LIST_KEYS, ListKeysRequest())
    with pytest.raises(KMSInternalError):
        await service.ask(ALICE, STATUS, StatusRequest())
    assert service.newest()["errorCode"] == "KMSInternalException"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (StoreUnavailableError("store: disk I/O error"), StorageError),
        (StoreFormatError("store: damaged"), StorageError),
        (ZeroDivisionError(SECRET.decode()), KMSInternalError),
    ],
    ids=["foreseen", "damaged", "unforeseen"],
)
@pytest.mark.parametrize("call", ["key", "material"])
async def test_a_store_that_fails_while_something_is_loaded_is_told(
    service: Embedded, fault: Exception, told: type[Exception], call: str
) -> None:
    """A request of the hot path that had to load something is answered and recorded, whatever the load raised."""
    arn = await service.make_key()
    service.store.faults[call] = fault

    with pytest.raises(told):
        await service.ask(ALICE, ENCRYPT, encrypt(arn))

    record = service.newest()
    assert record["eventName"] == "Encrypt"
    assert record["errorCode"] in {"StorageException", "KMSInternalException"}
    assert SECRET.decode() not in service.log.getvalue()
    del service.store.faults[call]
    await service.ask(ALICE, ENCRYPT, encrypt(arn))


async def test_a_failed_load_of_material_names_the_key(service: Embedded) -> None:
    """By then it is known which key was to be used, and which rule allowed it."""
    arn = await service.make_key()
    blob = (await service.ask(ALICE, ENCRYPT, encrypt(arn))).ciphertext_blob
    service.versions.seal()
    service.store.faults["material"] = StoreUnavailableError("store: disk I/O error")

    with pytest.raises(StorageError):
        await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob))

    record = service.newest()
    assert record["resources"] == [{"ARN": arn}]
    assert "key policy" in record["additionalEventData"]["decision"]


async def test_a_request_that_loads_is_recorded_once(service: Embedded) -> None:
    """A key, then its material, are loaded; one record stands for the one request."""
    arn = await service.make_key()
    before = service.trail.head[0]

    await service.ask(ALICE, ENCRYPT, encrypt(arn))

    assert service.trail.head[0] == before + 1
    assert service.store.calls[-2:] == ["key", "material"]


async def test_caches_of_the_least_size_serve(open_service: OpenService) -> None:
    """One key at a time fits; a request that needs more at once is told so after a bounded number of loads."""
    service = await open_service(keys_in_memory=1)
    first, second = await service.make_key(), await service.make_key()
    blobs = [(await service.ask(ALICE, ENCRYPT, encrypt(arn))).ciphertext_blob for arn in (first, second)]
    for blob in blobs:
        response = await service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob))
        assert bytes(response.plaintext) == SECRET

    loads = len(service.store.calls)
    with pytest.raises(KeyUnavailableError, match="too small"):
        await service.ask(ALICE, REENCRYPT, ReEncryptRequest(ciphertext_blob=blobs[0], destination_key_id=second))

    assert len(service.store.calls) - loads <= 20
    assert service.newest()["errorCode"] == "KeyUnavailableException"


async def test_caches_for_two_keys_serve_many_at_once(open_service: OpenService) -> None:
    """Requests that push each other's keys out all get through in the end."""
    service = await open_service(keys_in_memory=2)
    arns = [await service.make_key() for _ in range(6)]
    blobs = [(await service.ask(ALICE, ENCRYPT, encrypt(arn))).ciphertext_blob for arn in arns]

    answers = await asyncio.gather(
        *(service.ask(ALICE, DECRYPT, DecryptRequest(ciphertext_blob=blob)) for blob in blobs * 3)
    )
    moved = await service.ask(ALICE, REENCRYPT, ReEncryptRequest(ciphertext_blob=blobs[0], destination_key_id=arns[5]))

    assert [bytes(answer.plaintext) for answer in answers] == [SECRET] * 18
    assert moved.key_id == arns[5]


async def answer_to(service: Embedded, operation: Operation[Any, Any]) -> Answer:
    """The answer to a request of root's without members, which must then be on record."""
    batch = Batch()
    later = service.pipeline.serve(ROOT, Request(1, operation.name, memoryview(b"\x80")), batch)
    if later is None:
        service.pipeline.finish(batch)
    else:
        batch = await later
    [answer] = answers_in(batch.out)
    record = service.newest()
    assert record["eventName"] == operation.name
    assert record.get("errorCode") == (answer.error.code if answer.error else None)
    return answer


async def test_sealed_only_what_needs_no_key_is_served(service: Embedded) -> None:
    """A sealed daemon says so, to anybody, before it looks at the members; and the refusal is on record.

    What is not offered is refused sealed or not (test_unsupported.py).
    """
    service.seal.seal()
    await service.gate.close(0)
    for operation in set(OPERATIONS) - set(unsupported.OPERATIONS):
        answer = await answer_to(service, operation)
        if operation.works_sealed:
            assert answer.error is None, operation.name
        else:
            assert isinstance(answer.error, SealedError), operation.name
            assert answer.error.retryable


async def test_stopping_nothing_is_begun(service: Embedded) -> None:
    """What arrives after the daemon began to stop is refused, and recorded."""
    service.pipeline.stopping = True
    for operation in OPERATIONS:
        answer = await answer_to(service, operation)
        assert isinstance(answer.error, ShuttingDownError), operation.name


@pytest.mark.parametrize("state", [KeyState.ENABLED, KeyState.DISABLED, KeyState.PENDING_DELETION])
async def test_who_may_not_use_a_key_learns_nothing_of_its_state(service: Embedded, state: KeyState) -> None:
    """The refusal is the same, word for word, whatever state the key is in and whatever else is wrong."""
    arn = await service.make_key()
    blob = (await service.ask(ALICE, ENCRYPT, encrypt(arn))).ciphertext_blob
    if state is not KeyState.ENABLED:
        await change_state(service, arn, state)

    said = []
    asked: list[Asked] = [
        (ENCRYPT, encrypt(arn)),
        (ENCRYPT, EncryptRequest(key_id=arn, plaintext=memoryview(b"x"), dry_run=True)),
        (DECRYPT, DecryptRequest(ciphertext_blob=blob)),
        (DECRYPT, DecryptRequest(ciphertext_blob=blob, encryption_context={"wrong": "context"})),
        (GENERATE_DATA_KEY, GenerateDataKeyRequest(key_id=arn)),
        (DESCRIBE_KEY, DescribeKeyRequest(key_id=arn)),
    ]
    for operation, request in asked:
        with pytest.raises(AccessDeniedError) as refusal:
            await service.ask(BOB, operation, request)
        said.append(str(refusal.value))
        record = service.newest()
        assert record["errorCode"] == "AccessDeniedException"
        assert record["resources"] == [{"ARN": arn}]

    name = "User: bob (uid 1001) is not authorized to perform: kms:{} on resource: {} because no policy allows it"
    actions = ("Encrypt", "Encrypt", "Decrypt", "Decrypt", "GenerateDataKey", "DescribeKey")
    assert said == [name.format(action, arn) for action in actions]


async def test_who_may_use_a_disabled_key_is_told(service: Embedded) -> None:
    """After authorization the state is checked, with AWS's own words."""
    arn = await service.make_key()
    await change_state(service, arn, KeyState.DISABLED)

    with pytest.raises(DisabledError, match=r"^arn:aws:kms:\S+ is disabled\.$"):
        await service.ask(ALICE, ENCRYPT, encrypt(arn))


async def test_members_that_do_not_fit_are_refused_and_recorded(service: Embedded) -> None:
    """The record of a request nobody could read has no parameters."""
    batch = Batch()

    service.pipeline.serve(ALICE, Request(1, "GenerateRandom", memoryview(b"\x81\xa5Bogus\x01")), batch)
    service.pipeline.finish(batch)

    [answer] = answers_in(batch.out)
    assert isinstance(answer.error, ValidationError)
    assert "requestParameters" not in service.newest()


async def test_each_request_has_an_id_of_its_own(service: Embedded) -> None:
    """The error a caller sees names its record."""
    for _ in range(3):
        with pytest.raises(NotFoundError) as refusal:
            await service.ask(ALICE, ENCRYPT, encrypt("alias/none"))
        assert service.newest()["requestID"] == refusal.value.request_id
    ids = [record["requestID"] for record in service.lines()]

    assert len(set(ids)) == len(ids)


async def test_scratch_holds_nothing_after_a_request(service: Embedded) -> None:
    """Plaintexts and data keys are wiped from secret memory before the next request, also when one was refused."""
    arn = await service.make_key()
    blob = (await service.ask(ALICE, ENCRYPT, encrypt(arn))).ciphertext_blob
    asked: list[Asked] = [
        (DECRYPT, DecryptRequest(ciphertext_blob=blob)),
        (GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=32 * 1024)),
        (GENERATE_DATA_KEY, GenerateDataKeyRequest(key_id=arn, number_of_bytes=1024)),
        (REENCRYPT, ReEncryptRequest(ciphertext_blob=blob, destination_key_id=arn)),
    ]
    for operation, request in asked:
        await service.ask(ALICE, operation, request)
        assert not any(service.scratch.take(32 * 1024))
    with pytest.raises(NotFoundError):  # found out after the plaintext was decrypted
        await service.ask(ALICE, REENCRYPT, ReEncryptRequest(ciphertext_blob=blob, destination_key_id="alias/none"))
    assert not any(service.scratch.take(32 * 1024))


async def test_a_request_that_was_kept_to_be_served_later_is_wiped(service: Embedded) -> None:
    """Its members may hold a plaintext: nothing of it stays when it was served, nor when its peer hangs up."""
    arn = await service.make_key()
    for hang_up in (False, True):
        service.records.forget_all()
        gate = service.store.gates["key"] = Gate()
        later = service.serve(ALICE, request_frame(ENCRYPT, encrypt(arn)), Batch())
        assert later is not None
        assert isinstance(later, CoroutineType)
        assert later.cr_frame is not None
        kept = later.cr_frame.f_locals["params"]
        assert SECRET in kept
        task = asyncio.ensure_future(later)
        await gate.arrived.wait()

        if hang_up:
            task.cancel()
        gate.opened.set()
        await asyncio.wait({task})

        assert not any(kept)


async def test_a_reply_whose_peer_hung_up_during_the_sync_is_wiped(open_service: OpenService) -> None:
    """With audit.sync = always a reply waits for the disk; nobody will send it then."""
    service = await open_service(sync=SyncMode.ALWAYS)
    arn = await service.make_key()
    batch = Batch()
    service.serve(ALICE, request_frame(GENERATE_RANDOM, GenerateRandomRequest(number_of_bytes=64)), batch)
    service.pipeline.finish(batch)
    gate = service.trail.sync_gate = Gate()
    settling = asyncio.ensure_future(service.pipeline.settle(batch))
    await gate.arrived.wait()

    settling.cancel()
    await asyncio.wait({settling})

    assert not any(batch.out)
    assert arn


async def test_reading_the_trail_is_on_record(service: Embedded) -> None:
    """Administrators are recorded like everybody, and others are refused."""
    response = await service.ask(ROOT, GET_AUDIT_RECORDS, GetAuditRecordsRequest())

    assert service.newest()["eventName"] == "GetAuditRecords"
    assert response.records == []
    with pytest.raises(AccessDeniedError):
        await service.ask(ALICE, GET_AUDIT_RECORDS, GetAuditRecordsRequest())


async def test_a_trail_that_works_again_is_enough(service: Embedded) -> None:
    """After a refusal nothing has to be reset."""
    service.trail.refuses = kind_is(Kind.REQUEST)
    with pytest.raises(AuditUnavailableError):
        await service.ask(ALICE, STATUS, StatusRequest())
    service.trail.refuses = None

    await service.ask(ALICE, STATUS, StatusRequest())
