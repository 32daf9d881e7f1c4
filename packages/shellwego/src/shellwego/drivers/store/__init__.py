"""Drivers of `ports.store`: memory, and SQLite in WAL mode, or PostgreSQL."""
