"""Measurements against peers: one command each, ``python -m benchmarks.NAME``; results are JSON beside a table."""
