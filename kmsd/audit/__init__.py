"""The audit trail: what was asked, by whom, and what came of it, as a chain of lines (FORMAT.md)."""
