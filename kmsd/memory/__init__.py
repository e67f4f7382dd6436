"""Secret memory: where keys live, and how one crosses to another process."""

from kmsd.memory.arena import Arena, ArenaFullError, Slot, default_limit_bytes
from kmsd.memory.mapping import MemoryKind, SecretMemoryUnavailableError
from kmsd.memory.page import PAGE_BYTES, Page

__all__ = [
    "PAGE_BYTES",
    "Arena",
    "ArenaFullError",
    "MemoryKind",
    "Page",
    "SecretMemoryUnavailableError",
    "Slot",
    "default_limit_bytes",
]
