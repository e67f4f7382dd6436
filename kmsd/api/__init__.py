"""The contract between daemon and client: operations, shapes and errors. Data only."""

from kmsd.api import (
    administration,
    backups,
    calendar,
    credentials,
    deletion,
    events,
    files,
    grants,
    keys,
    metrics,
    policies,
    rotation,
    symmetric,
    tags,
    unsupported,
)
from kmsd.api.operation import Operation

OPERATIONS: tuple[Operation, ...] = (  # type: ignore[type-arg] # of every request and response type
    *keys.OPERATIONS,
    *rotation.OPERATIONS,
    *deletion.OPERATIONS,
    *policies.OPERATIONS,
    *grants.OPERATIONS,
    *tags.OPERATIONS,
    *symmetric.OPERATIONS,
    *files.OPERATIONS,
    *administration.OPERATIONS,
    *backups.OPERATIONS,
    *calendar.OPERATIONS,
    *credentials.OPERATIONS,
    *metrics.OPERATIONS,
    *unsupported.OPERATIONS,
    *events.OPERATIONS,
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
