"""The client of kmsd: `Client` blocks, `AsyncClient` is for asyncio; both have a method for every operation.

What they return and raise is declared in `kmsd.api`. Names are imported when they are asked for, as start-up counts:
asyncio alone costs 35 ms.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmsd.api.errors import KmsError
    from kmsd_client._async import AsyncClient
    from kmsd_client._sync import Client

__all__ = ["AsyncClient", "Client", "KmsError"]

_HOMES = {"AsyncClient": "kmsd_client._async", "Client": "kmsd_client._sync", "KmsError": "kmsd.api.errors"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
