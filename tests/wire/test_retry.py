"""When a client asks again."""

from typing import Any

import pytest

from kmsd.api.errors import ConnectionLostError, DisabledError, KmsError, ShuttingDownError, ThrottlingError
from kmsd.api.keys import CREATE_KEY
from kmsd.api.operation import Operation
from kmsd.api.symmetric import ENCRYPT
from kmsd.wire.retry import delay_before_retry


def lost(*, retryable: bool) -> ConnectionLostError:
    error = ConnectionLostError()
    error.retryable = retryable
    return error


@pytest.mark.parametrize(
    ("operation", "error", "sent", "retries"),
    [
        (ENCRYPT, ThrottlingError(), True, True),
        (ENCRYPT, DisabledError(), True, False),
        (ENCRYPT, lost(retryable=True), True, True),
        (ENCRYPT, lost(retryable=False), False, False),
        (CREATE_KEY, ThrottlingError(), True, False),
        (CREATE_KEY, lost(retryable=True), True, False),
        (CREATE_KEY, lost(retryable=True), False, True),
        (CREATE_KEY, ShuttingDownError(), True, True),
    ],
)
def test_only_what_is_worth_it_and_cannot_happen_twice_is_asked_again(
    operation: Operation[Any, Any],
    error: KmsError,
    sent: bool,
    retries: bool,
) -> None:
    """Retryable, and either read-only or never received by the daemon."""
    delay = delay_before_retry(operation, error, sent=sent, failures=1, random=lambda: 1.0)

    assert retries == (delay is not None)


@pytest.mark.parametrize(("random", "delays"), [(0.0, [0.025, 0.05, 0.1, None]), (1.0, [0.05, 0.1, 0.2, None])])
def test_delays_double_and_end(random: float, delays: list[float | None]) -> None:
    """Three retries, each delay shortened by up to a half."""
    asked = [
        delay_before_retry(ENCRYPT, ThrottlingError(), sent=True, failures=failures, random=lambda: random)
        for failures in (1, 2, 3, 4)
    ]

    assert delays == asked
