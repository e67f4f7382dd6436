"""The operation that tells how the service does in numbers."""

from __future__ import annotations

from kmsd.api.operation import MAX_FRAME_BYTES, Cost, Operation
from kmsd.api.shapes import Request, Response

# The metric that tells whether kmsd answers. Who asks for metrics says so himself when there is no answer.
UP = "kmsd_up"


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
    cost=Cost.STORE,
    works_sealed=True,
    reply_bytes=MAX_FRAME_BYTES,
    audit_fields=(),
)

OPERATIONS = (GET_METRICS,)
