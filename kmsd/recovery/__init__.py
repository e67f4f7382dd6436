"""The recovery key: what opens the domain keys when the token is lost, split into shares that people keep."""

# AES-256's strength, which is also that of what the key wraps.
RECOVERY_KEY_BYTES = 32
