"""The platform's log: one line of keys and values for each thing that happened, on stderr, whoever says it.

Libraries (uvicorn, asyncio, Alembic) speak through `logging`; without a handler their warnings would be printed as bare
lines. They go through the same renderer, from `warning` on. Uvicorn's own warnings tell of what any stranger may send it
(“Invalid HTTP request received.”), once for each try: they have no value and could fill a disk, so only its errors stay.
Of these it says one also where nothing is wrong: each time that we answer a WebSocket's handshake with a refusal.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

_STRANGERS_CAUSE = "uvicorn"
REFUSED_HANDSHAKE = "ASGI callable returned without completing handshake."


def log_to_stderr() -> None:
    """Have everything in this process log to stderr in the platform's form."""
    said: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"])
    structlog.configure(processors=[*said, renderer], logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *said],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger(_STRANGERS_CAUSE).setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.getMessage() != REFUSED_HANDSHAKE)
