"""What people ask for, each with what it does to the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from kmsd.api.deletion import (
    CANCEL_KEY_DELETION,
    SCHEDULE_KEY_DELETION,
    CancelKeyDeletionRequest,
    ScheduleKeyDeletionRequest,
)
from kmsd.api.files import ENCRYPT_FILE, EncryptFileRequest
from kmsd.api.keys import CREATE_ALIAS, CREATE_KEY, CreateAliasRequest, CreateKeyRequest
from kmsd.api.operation import Operation
from kmsd.api.rotation import (
    ENABLE_KEY_ROTATION,
    ROTATE_KEY_ON_DEMAND,
    EnableKeyRotationRequest,
    RotateKeyOnDemandRequest,
)
from kmsd.api.symmetric import ENCRYPT, EncryptRequest
from tests.life.model import Model

# What is done to the model, and raises what a request is refused with.
Change = Callable[[Model], Any]


class Deed(NamedTuple):
    """A request, and what it does to the model."""

    change: Change
    operation: Operation[Any, Any]
    request: msgspec.Struct


CREATE = Deed(Model.create_key, CREATE_KEY, CreateKeyRequest())


def create_alias(alias: str, key: str) -> Deed:
    request = CreateAliasRequest(alias_name=alias, target_key_id=key)
    return Deed(lambda model: model.create_alias(alias, key), CREATE_ALIAS, request)


def encrypt(key: str, plaintext: bytes) -> Deed:
    request = EncryptRequest(key_id=key, plaintext=memoryview(plaintext))
    return Deed(lambda model: model.encrypt(key), ENCRYPT, request)


def encrypt_file(key: str) -> Deed:
    return Deed(lambda model: model.encrypt(key), ENCRYPT_FILE, EncryptFileRequest(key_id=key))


def rotate(key: str) -> Deed:
    return Deed(lambda model: model.rotate(key), ROTATE_KEY_ON_DEMAND, RotateKeyOnDemandRequest(key_id=key))


def rotate_every(key: str, days: int) -> Deed:
    request = EnableKeyRotationRequest(key_id=key, rotation_period_in_days=days)
    return Deed(lambda model: model.enable_rotation(key, days), ENABLE_KEY_ROTATION, request)


def schedule_deletion(key: str, days: int) -> Deed:
    request = ScheduleKeyDeletionRequest(key_id=key, pending_window_in_days=days)
    return Deed(lambda model: model.schedule_deletion(key, days), SCHEDULE_KEY_DELETION, request)


def cancel_deletion(key: str) -> Deed:
    request = CancelKeyDeletionRequest(key_id=key)
    return Deed(lambda model: model.cancel_deletion(key), CANCEL_KEY_DELETION, request)
