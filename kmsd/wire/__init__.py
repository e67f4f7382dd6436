"""The wire protocol as a sans-IO core: bytes to messages and back, for both sides. `PROTOCOL.md` specifies it."""
