"""What tests of peers rely on."""

import os
import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket with an abstract address, which a child of any uid reaches."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0kmsd-test-peer-{os.getpid()}")
        sock.listen()
        yield sock
