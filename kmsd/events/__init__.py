"""Events: what somebody should know in time, told of the audit trail's records (EVENTS.md)."""
