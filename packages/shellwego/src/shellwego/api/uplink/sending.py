"""What downloads on the node port have in common: one that breaks off is a connection that does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog
from aiohttp import web

_log = structlog.get_logger(__name__)


@contextlib.contextmanager
def breaking_off(request: web.BaseRequest) -> Iterator[None]:
    """Send within it: once something was sent there are no words for what fails, so the connection is closed, and the reader
    knows that it has not all.

    Raises:
        ConnectionError: what is sent, or its reader, stopped in the middle.
    """
    try:
        yield
    except ConnectionError:
        raise
    except Exception as error:
        _log.warning("uplink.download_broke", path=request.path, reason=repr(error))
        raise ConnectionError("the download broke off") from error
