"""The line between what can happen and what nobody foresaw."""

from __future__ import annotations

from kmsd.api.errors import KmsError, KMSInternalError
from kmsd.logs import Logger
from kmsd.service.call import Call
from kmsd.service.telling import told_as


class Foreseen:
    """The daemon's one catch-all: what a handler did not foresee becomes KMSInternalError and an incident in the log.

    `also` passes beside KmsError. A class and no generator, because every request passes through it.
    """

    __slots__ = ("_also", "_call", "_logger")

    def __init__(self, logger: Logger, call: Call, also: type[Exception] = KmsError) -> None:
        self._logger = logger
        self._call = call
        self._also = also

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: object) -> None:
        told = None if isinstance(fault, KmsError) else told_as(fault)
        if told is not None:
            raise told from None
        if isinstance(fault, Exception) and not isinstance(fault, (KmsError, self._also)):
            call = self._call
            self._logger.fault("request_failed", fault, operation=call.operation.name, request_id=call.request_id)
            raise KMSInternalError(
                "kmsd failed to serve this request; its log tells why, under the request id"
            ) from None
