"""What is generated from the declarations is what is committed."""

import inspect

from kmsd.api import OPERATIONS
from kmsd.api.operation import attribute_name
from kmsd_client import AsyncClient, Client
from kmsd_client._reference import replace_reference
from kmsd_client.generate import OPERATIONS_FILE, PROTOCOL_FILE, operations_source

HINT = "run `python -m kmsd_client.generate`"


def test_the_methods_follow_from_the_declarations() -> None:
    """A changed declaration needs the generator to be run."""
    assert operations_source() == OPERATIONS_FILE.read_text(), HINT


def test_the_protocols_reference_follows_from_the_declarations() -> None:
    """A client written from PROTOCOL.md alone knows every operation, member and error."""
    document = PROTOCOL_FILE.read_text()

    assert replace_reference(document) == document, HINT


def test_both_kinds_of_client_have_every_operation() -> None:
    """With the same arguments."""
    for operation in OPERATIONS:
        name = attribute_name(operation.name)
        blocking, waiting = getattr(Client, name), getattr(AsyncClient, name)

        assert inspect.signature(blocking) == inspect.signature(waiting)
        assert inspect.iscoroutinefunction(waiting)
