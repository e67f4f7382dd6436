"""Backup files: their format, written and read as streams. `FORMAT.md` specifies it."""
