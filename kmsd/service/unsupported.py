"""What is said to who asks for something that AWS KMS has and kmsd does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from kmsd.api import unsupported as api
from kmsd.api.errors import UnsupportedOperationError
from kmsd.api.operation import Operation
from kmsd.service.call import Call


async def refuse_multi_region(call: Call, request: msgspec.Struct) -> NoReturn:  # noqa: ARG001 - handlers share one form
    """Tell that keys stay where they were made."""
    raise UnsupportedOperationError(
        f"{call.operation.name} is not offered: there are no multi-Region keys, keys stay on the host that made them"
    )


async def refuse_custom_key_stores(call: Call, request: msgspec.Struct) -> NoReturn:  # noqa: ARG001 - handlers share one form
    """Tell that there is one store of keys."""
    raise UnsupportedOperationError(
        f"{call.operation.name} is not offered: there are no custom key stores, all keys are in this host's own store"
    )


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {
    **dict.fromkeys(api.MULTI_REGION, refuse_multi_region),
    **dict.fromkeys(api.CUSTOM_KEY_STORES, refuse_custom_key_stores),
}
