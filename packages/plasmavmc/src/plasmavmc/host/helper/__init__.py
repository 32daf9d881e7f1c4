"""The root helper: the only code of the engine that runs as root after the start.

Whoever audits the engine's privileges reads this package and `host/split.py`, and nothing else. Each operation checks its
values by itself; what the unprivileged side says is never believed. docs/design/trust-boundaries.md lists operations,
arguments and checks.
"""
