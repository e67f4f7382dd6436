"""Durable records: rows that authenticate themselves, in short transactions."""
