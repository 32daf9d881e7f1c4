"""Benchmarks: each a ratio against a peer or a floor, measured side by side in one run. None gates a test."""
