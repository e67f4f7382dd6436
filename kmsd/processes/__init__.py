"""Who may fork: the zygote makes every other process of the daemon."""

from kmsd.processes.sandbox import close_descriptors_except, harden_process
from kmsd.processes.zygote import Child, Entry, SpawnError, Zygote, ZygoteGoneError

__all__ = [
    "Child",
    "Entry",
    "SpawnError",
    "Zygote",
    "ZygoteGoneError",
    "close_descriptors_except",
    "harden_process",
]
