"""What holds for every request, before any route: a trace id, a bound on the body, an answer even to our own defects.

Written on bare ASGI: a request for a stream or a socket passes through without being buffered.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shellwego.api.rest.problems import internal_problem, problem

MAX_BODY = 10 * 1000 * 1000
MAX_STRANGERS_BODY = 64 * 1024
"""Where anybody may call: it is held in memory before it is known who sends it."""
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Unless the answer has its own."""

Observe = Callable[[Scope, int, float], None]


class TraceMiddleware:
    """Gives each request a trace id (that of a W3C `traceparent`, if there is one), and answers where nobody did."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope["trace_id"] = _trace_id(scope)
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        trace = (b"x-trace-id", scope["trace_id"].encode())
        status = 0

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = message.get("headers", ())
                own = {name for name, _ in given}
                ours = (header for header in _SECURITY_HEADERS if header[0] not in own)
                message["headers"] = [*given, trace, *ours]
            await send(message)

        try:
            await self._app(scope, receive, send_traced)
        except ClientDisconnect:
            pass  # it left in the middle of its body, so there is nobody to answer
        except Exception as error:  # noqa: BLE001 - the last place where a defect can become an answer
            response = internal_problem(Request(scope), error)
            if not status:
                await response(scope, receive, send_traced)
        self._observe(scope, status, time.monotonic() - started)


def _header(scope: Scope, name: bytes) -> str:
    """The first header of this name, in lower case; ASGI has them so. Empty where there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _trace_id(scope: Scope) -> str:
    match = _TRACEPARENT.fullmatch(_header(scope, b"traceparent"))
    return match[1] if match and match[1].strip("0") else secrets.token_hex(16)


class _TooLargeError(Exception):
    pass


class BodyLimitMiddleware:
    """Refuses bodies over 10 MB with 413, and much smaller ones at the paths where anybody may call; routes that take
    uploads bound them on their own."""

    def __init__(self, app: ASGIApp, unlimited: Callable[[Scope], bool], public: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._unlimited = unlimited
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._unlimited(scope):
            await self._app(scope, receive, send)
            return
        most = MAX_STRANGERS_BODY if scope["path"] in self._public else MAX_BODY
        declared = _header(scope, b"content-length")
        if declared.isdecimal() and int(declared[:20]) > most:
            await _refuse(scope, receive, send, most)
            return
        await self._count(scope, receive, send, most)

    async def _count(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        size = 0
        started = False

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise _TooLargeError
            return message

        async def send_unless_too_large(message: Message) -> None:
            nonlocal started
            if size <= most:
                started = True
                await send(message)

        with contextlib.suppress(_TooLargeError):
            await self._app(scope, receive_counted, send_unless_too_large)
        if size > most and not started:
            await _refuse(scope, receive, send, most)


async def _refuse(scope: Scope, receive: Receive, send: Send, most: int) -> None:
    detail = f"a body has at most {most} bytes"
    # The rest of the body is not read, so the connection cannot be used again.
    response = problem(Request(scope), 413, "body-too-large", detail, headers={"Connection": "close"})
    await response(scope, receive, send)
