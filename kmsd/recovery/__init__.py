"""The recovery key: what opens the domain keys when the token is lost, split into shares that people keep."""
