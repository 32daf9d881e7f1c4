"""Errors as the API tells them: RFC 9457 problems, the same shape for everything that can go wrong.

Core errors carry meaning; this is the one place that knows their HTTP status. What a client sent is repeated in bounded
pieces only, and what failed inside is logged under the trace id and told as nothing but that id.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from shellwego.core import errors as core

SENSITIVE = "x-sensitive"
"""Marks an operation whose body is not repeated, not even where it is wrong."""
MEDIA_TYPE = "application/problem+json"
_MAX_TEXT = 500
_MAX_ERRORS = 20

STATUS: Mapping[type[core.ShellWeGoError], int] = {
    core.MalformedError: 400,
    core.UnauthenticatedError: 401,
    core.ForbiddenError: 403,
    core.NotFoundError: 404,
    core.ConflictError: 409,
    core.StaleError: 412,
    core.InvalidError: 422,
    core.QuotaError: 429,
    core.UnavailableError: 503,
}
_NO_PATH = ("the API has nothing at this path", "Its document lists all paths; a name or id in one has no slash.")
SECRET_FIELDS = frozenset({"password", "old_password", "new_password", "totp", "code", "invitation"})
"""Fields whose values are never repeated."""
_HTTP_CODES = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large", 400: "malformed"}

_WORDS: Mapping[str, str] = {
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
    "string_pattern_mismatch": "does not match {pattern}",
}
"""Kinds of faults in words for people, with the limit that was passed."""

_log = structlog.get_logger(__name__)


class FieldProblem(BaseModel):
    """One fault of a request. `field` is a path such as `processes.web.memory`."""

    field: str
    code: str
    message: str
    value: str | None = None
    limit: int | None = None
    """Of a quota: what may be had."""
    used: int | None = None
    """Of a quota: what is there already."""


class Problem(BaseModel):
    """What went wrong, in the form of RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    trace_id: str
    code: str
    resolution: str | None = None
    errors: list[FieldProblem] = []


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    resolution: str = "",
    errors: Iterable[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that tells of a problem."""
    body = Problem(
        type=f"urn:shellwego:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=_text(detail),
        instance=_text(request.url.path),
        trace_id=request.scope.get("trace_id", ""),
        code=code,
        resolution=resolution or None,
        errors=list(errors)[:_MAX_ERRORS],
    )
    content = msgspec.json.encode(body.model_dump(exclude_none=True))
    return Response(content, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def status_of(error: core.ShellWeGoError) -> int:
    """The HTTP status of a core error."""
    return next(status for kind, status in STATUS.items() if isinstance(error, kind))


def core_problem(request: Request, error: core.ShellWeGoError) -> Response:
    """A core error as a problem. A stale version that the client did not name is a conflict of two writers."""
    status = status_of(error)
    if isinstance(error, core.StaleError) and "if-match" not in request.headers:
        status = 409
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    if isinstance(error, core.ThrottledError):
        headers = {"Retry-After": str(error.retry_after_s)}
    faults = [
        FieldProblem(field=_text(e.field), code=e.code, message=_text(e.message), limit=e.limit, used=e.used)
        for e in error.errors
    ]
    return problem(
        request, status, error.code, error.message, resolution=error.resolution, errors=faults, headers=headers
    )


def install(app: FastAPI) -> None:
    """Make every error of the app's own router a problem."""
    for kind in (core.ShellWeGoError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _on_error)


async def _on_error(request: Request, error: Exception) -> Response:
    return problem_of(request, error)


def problem_of(request: Request, error: Exception) -> Response:
    """The problem that an error of a request is; a defect of ours is raised again."""
    if isinstance(error, core.ShellWeGoError):
        return core_problem(request, error)
    if isinstance(error, RequestValidationError):
        return _validation_problem(request, error)
    if isinstance(error, HTTPException):
        return _http_problem(request, error)
    raise error


def _http_problem(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    code = _HTTP_CODES.get(status, "http-error")
    detail, resolution = _NO_PATH if status == 404 else (str(error.detail), "")
    headers = {"Allow": _allowed(request)} if status == 405 else error.headers
    return problem(request, status, code, detail, resolution=resolution, headers=headers)


def _allowed(request: Request) -> str:
    """All methods at this path (RFC 9110, section 15.5.6); the router tells those of one route only. Where a path is fixed,
    what takes its last part for a name is another resource."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    found = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    fewest = min((len(route.param_convertors) for route in found), default=0)
    fitting = [route for route in found if len(route.param_convertors) == fewest]
    return ", ".join(sorted({method for route in fitting for method in route.methods or ()}))


def _validation_problem(request: Request, error: RequestValidationError) -> Response:
    found = error.errors()
    extra = getattr(request.scope.get("route"), "openapi_extra", None) or {}
    faults = [_field_problem(each, repeat=SENSITIVE not in extra) for each in found[:_MAX_ERRORS]]
    status = 400 if any(_is_malformed(str(each.get("type"))) for each in found) else 422
    code = "malformed" if status == 400 else "refused"
    detail = f"{faults[0].field}: {faults[0].message}" if faults else "the request is malformed"
    return problem(request, status, code, detail, errors=faults)


def _is_malformed(kind: str) -> bool:
    """Whether the fault is one of form (another type, unknown or missing field) and not of meaning."""
    return kind in ("missing", "extra_forbidden", "json_invalid", "string_unicode") or kind.endswith(
        ("_type", "_parsing", "_parsing_size", "_from_float")
    )


def _field_problem(error: Mapping[str, Any], *, repeat: bool) -> FieldProblem:
    location = [str(part) for part in error.get("loc", ()) if part not in ("body", "query", "path", "header")]
    value = error.get("input")
    shown = repeat and SECRET_FIELDS.isdisjoint(location)
    return FieldProblem(
        field=_text(".".join(location) or "body"),
        code=str(error.get("type", "invalid")).replace("_", "-"),
        message=_text(_words(error)),
        value=_text(str(value), 100) if shown and isinstance(value, str | int | float | bool) else None,
    )


def _words(error: Mapping[str, Any]) -> str:
    """The fault for people: not in the words of the library that found it."""
    limits: Mapping[str, Any] = error.get("ctx", {})
    kind = str(error.get("type"))
    if kind in ("string_too_short", "too_short") and limits.get("min_length") == 1:
        return "is empty"
    if kind in _WORDS:
        return _WORDS[kind].format_map(limits)
    return str(error.get("msg", "")).removeprefix("Value error, ")


def internal_problem(request: Request, error: Exception) -> Response:
    """A defect of ours: where it happened into the log, nothing of it to the client.

    The trace-back is text made here: a renderer that shows local variables would show tokens.
    """
    trace_id = request.scope.get("trace_id", "")
    trace = "".join(traceback.format_exception(error))
    _log.error("api.request_failed", trace_id=trace_id, method=request.method, path=request.url.path, trace=trace)
    return problem(
        request, 500, "internal", "something failed inside; the log has it under this trace id", resolution="Try again."
    )


def _text(text: str, limit: int = _MAX_TEXT) -> str:
    """Bounded, and without what JSON in UTF-8 cannot carry."""
    return text[:limit].encode(errors="replace").decode()
