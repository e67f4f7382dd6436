"""Unsealing the daemon: the client's side of what follows the operation Unseal.

PIN or recovery shares go to the daemon as one datagram over a socketpair, and from there into secret memory. This
process holds them as long as its caller does.
"""

from __future__ import annotations

import contextlib
import os
import socket

from kmsd.api import unsealing
from kmsd.api.administration import UNSEAL, UnsealRequest
from kmsd.api.errors import (
    ConnectionLostError,
    ProtocolError,
    RecoverySharesError,
    TokenPinUnavailableError,
    ValidationError,
)
from kmsd.api.unsealing import MAX_DATAGRAM_BYTES, MAX_PIN_BYTES, MAX_SHARES_BYTES, Unsealed
from kmsd_client.files import Caller


def unseal(client: Caller, pin: bytes | bytearray | None, *, accept_changes: bool = False) -> Unsealed:
    """Let the daemon unseal itself with `pin` (UTF-8), or with None with the PIN from its own configured source.

    Waits for the outcome, which takes as long as the token does. Raises the KmsError it ended with: of the operation,
    of the PIN or of the token. Nothing is tried twice. With `accept_changes` the daemon takes its records as they are
    when they are not as it left them: find out why they are not before.
    """
    if pin is None:
        return _converse(client, UnsealRequest(configured=True, accept_changes=accept_changes), None)
    if not pin:
        raise TokenPinUnavailableError("the PIN is empty")
    if len(pin) > MAX_PIN_BYTES:
        raise ValidationError(f"a PIN has at most {MAX_PIN_BYTES} bytes, and this has {len(pin)}")
    return _converse(client, UnsealRequest(accept_changes=accept_changes), pin)


def unseal_by_shares(client: Caller, shares: bytes | bytearray, *, accept_changes: bool = False) -> Unsealed:
    """Let the daemon unseal itself with recovery shares (UTF-8, one a line), and without its token.

    `accept_changes`, and the KmsError that is raised when it fails, are as for `unseal`.
    """
    if not shares:
        raise RecoverySharesError("there is no share")
    if len(shares) > MAX_SHARES_BYTES:
        raise ValidationError(f"shares have at most {MAX_SHARES_BYTES} bytes together, and these have {len(shares)}")
    return _converse(client, UnsealRequest(shares=True, accept_changes=accept_changes), shares)


def _converse(client: Caller, request: UnsealRequest, secret: bytes | bytearray | None) -> Unsealed:
    _, descriptors = client.call_with_descriptors(UNSEAL, request)
    if len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ConnectionLostError(f"the daemon sent {len(descriptors)} descriptors instead of one")
    with socket.socket(fileno=descriptors[0]) as channel:
        if secret is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why before it closed
                channel.send(secret)
        return _outcome(channel)


def _outcome(channel: socket.socket) -> Unsealed:
    try:
        datagram = channel.recv(MAX_DATAGRAM_BYTES)
    except ConnectionResetError:
        datagram = b""
    if not datagram:
        raise ConnectionLostError("the daemon went away before it said what became of the unsealing")
    try:
        outcome = unsealing.decode_outcome(datagram)
    except ProtocolError as error:
        raise ConnectionLostError(error.message) from None
    if outcome.error is not None:
        raise outcome.error.error()
    return outcome.done or Unsealed()
