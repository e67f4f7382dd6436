"""What kmsd counts and measures of itself, and how it tells that to Prometheus (METRICS.md)."""
