"""The contract between daemon and client: operations, shapes and errors. Data only."""

from kmsd.api import administration, backups, files, keys, symmetric
from kmsd.api.operation import Operation

OPERATIONS: tuple[Operation, ...] = (  # type: ignore[type-arg] # of every request and response type
    *keys.OPERATIONS,
    *symmetric.OPERATIONS,
    *files.OPERATIONS,
    *administration.OPERATIONS,
    *backups.OPERATIONS,
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
