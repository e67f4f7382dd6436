"""kmsd: a key management service for one Linux host, behind a Unix socket."""

__version__ = "0.1.0"
