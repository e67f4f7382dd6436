"""Asks for credentials as systemd does (systemd.exec(5), LoadCredential=)."""

from __future__ import annotations

import asyncio
import secrets
import socket
from pathlib import Path

# systemd refuses what is larger (CREDENTIAL_SIZE_MAX).
SYSTEMD_TAKES = 1024 * 1024


def address(unit: str, name: str) -> bytes:
    """Where systemd asks from: the number is written as %x."""
    return f"\0{secrets.randbits(64):x}/unit/{unit}/{name}".encode()


def connected(path: Path, source: bytes | str) -> socket.socket:
    """A socket that is connected to `path` from the address `source`; "" is none."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    if source:
        sock.bind(source)
    sock.connect(str(path))
    sock.shutdown(socket.SHUT_WR)
    return sock


def read(path: Path, source: bytes | str) -> bytes:
    """All that comes, as far as systemd reads it."""
    with connected(path, source) as sock:
        received = bytearray()
        while len(received) <= SYSTEMD_TAKES and (piece := sock.recv(65_536)):
            received += piece
    return bytes(received)


async def credential(path: Path, source: bytes | str) -> bytes | None:
    """The credential that systemd would give to the unit; None if it would not start it."""
    received = await asyncio.to_thread(read, path, source)
    return None if len(received) > SYSTEMD_TAKES else received
