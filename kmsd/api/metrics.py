"""The operation that tells how the service does in numbers."""

from __future__ import annotations

from kmsd.api.operation import MAX_FRAME_BYTES, Cost, Operation
from kmsd.api.shapes import Request, Response


class GetMetricsRequest(Request, frozen=True, kw_only=True):
    """GetMetrics has no members."""


class GetMetricsResponse(Response, frozen=True, kw_only=True):
    """What GetMetrics answers: Prometheus' text format, as Content-Type text/plain; version=0.0.4 has it."""

    text: str


GET_METRICS = Operation(
    name="GetMetrics",
    summary="Tell how the service does, in Prometheus' text format.",
    request=GetMetricsRequest,
    response=GetMetricsResponse,
    cost=Cost.STATUS,
    works_sealed=True,
    reply_bytes=MAX_FRAME_BYTES,
    audit_fields=(),
)

OPERATIONS = (GET_METRICS,)
