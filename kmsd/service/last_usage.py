"""When a key was used last, and how often: what somebody should know before he has it destroyed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from kmsd.api import deletion as api
from kmsd.api.operation import Operation
from kmsd.service.call import Call
from kmsd.service.records import KeyRecord
from kmsd.service.uses import KeyUses
from kmsd.store.rows import UsageRow


class LastUsage:
    """Handler of GetKeyLastUsage."""

    def __init__(self, *, uses: KeyUses) -> None:
        self._uses = uses

    async def get(self, call: Call, request: api.GetKeyLastUsageRequest, key: KeyRecord) -> api.GetKeyLastUsageResponse:  # noqa: ARG002 - handlers share one form
        """Tell what was done with a key until now; behind a kill that is known when the trail was counted."""
        await self._uses.recount()
        answer = api.GetKeyLastUsageResponse(
            key_id=key.arn, tracking_start_date=_date(key.use.since_ms), key_creation_date=_date(key.row.creation_ms)
        )
        used = key.use.total()
        return answer if used is None else _with_uses(answer, used)


HANDLERS: dict[Operation[Any, Any], Callable[..., Any]] = {api.GET_KEY_LAST_USAGE: LastUsage.get}


def _with_uses(answer: api.GetKeyLastUsageResponse, used: UsageRow) -> api.GetKeyLastUsageResponse:
    return api.GetKeyLastUsageResponse(
        key_id=answer.key_id,
        tracking_start_date=answer.tracking_start_date,
        key_creation_date=answer.key_creation_date,
        key_last_usage=api.KeyLastUsage(
            operation=used.operation, timestamp=_date(used.last_ms), kms_request_id=used.request_id
        ),
        uses=dict(sorted(used.counts.items())),
        material=[
            api.MaterialUsage(
                number=number, encrypted=use.encrypted, decrypted=use.decrypted, last_used=_date(use.last_ms)
            )
            for number, use in sorted((int(number), use) for number, use in used.materials.items())
        ],
    )


def _date(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC)
