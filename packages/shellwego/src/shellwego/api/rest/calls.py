"""Calls of endpoints: their arguments taken from a request, along what FastAPI read from their signatures.

FastAPI makes a tree of each signature (parameters, body, dependencies), by which it also writes the document. Its own walk
along that tree asks the same questions again for every request, and costs more than all else that a read does. Here they
are asked once, when the route is made; what a request gives is still parsed by FastAPI and pydantic, so that what the
document says and what is accepted cannot part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.message import Message
from functools import lru_cache
from typing import Any

from fastapi._compat import ModelField, Undefined
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_body_to_args, request_params_to_args
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from shellwego.core.errors import FieldError, MalformedError, ShellWeGoError

Faults = list[Any]
"""What was wrong with arguments, in pydantic's form."""
_NOT_SERVED = (
    "websocket_param_name",
    "background_tasks_param_name",
    "response_param_name",
    "security_scopes_param_name",
)


class _Parameters:
    """Those of one place of a request that may be left out: of the query, or of the headers."""

    def __init__(self, fields: Sequence[ModelField]) -> None:
        self._fields = fields
        self._names = [field.alias for field in fields]
        self._absent, self._missing = request_params_to_args(fields, {})

    def take(self, given: Mapping[str, str], found: dict[str, Any], faults: Faults) -> None:
        if not self._missing and not any(name in given for name in self._names):
            found.update(self._absent)
            return
        values, errors = request_params_to_args(self._fields, given)
        found.update(values)
        faults += errors


class _Function:
    """A function that requests are answered by, or that one such depends on."""

    def __init__(self, dependant: Dependant) -> None:
        served = not any(getattr(dependant, name) for name in _NOT_SERVED) and not dependant.cookie_params
        if not served or dependant.call is None:
            raise RuntimeError(f"{dependant.call} has a parameter of a kind that is not served here")
        self.run: Callable[..., Awaitable[Any]] = dependant.call
        self._name = dependant.name
        self._parts = [_Function(part) for part in dependant.dependencies]
        self._path = [(field, field.alias, ("path", field.alias)) for field in dependant.path_params]
        self._query = _Parameters(dependant.query_params) if dependant.query_params else None
        self._headers = _Parameters(dependant.header_params) if dependant.header_params else None
        wholes = (dependant.request_param_name, dependant.http_connection_param_name)
        self._wholes = [name for name in wholes if name]

    async def arguments(self, request: Request, faults: Faults) -> dict[str, Any]:
        """What to run it with; where that is not to be had, the faults say why."""
        found: dict[str, Any] = dict.fromkeys(self._wholes, request)
        for part in self._parts:
            before = len(faults)
            arguments = await part.arguments(request, faults)
            if len(faults) > before:
                continue
            value = await part.run(**arguments)
            if part._name is not None:
                found[part._name] = value
        for field, name, place in self._path:
            found[field.name], errors = field.validate(request.path_params[name], found, loc=place)
            faults += errors
        if self._query is not None:
            self._query.take(request.query_params if request.scope["query_string"] else {}, found, faults)
        if self._headers is not None:
            self._headers.take(request.headers, found, faults)
        return found


class Call:
    """What a request to one route runs."""

    def __init__(self, dependant: Dependant, *, embed_body: bool) -> None:
        """Raises `RuntimeError` where the endpoint wants something that is not served."""
        self._endpoint = _Function(dependant)
        self._body = dependant.body_params
        self._embed = embed_body

    async def __call__(self, request: Request) -> Response:
        """The endpoint's answer.

        Raises:
            RequestValidationError: of the arguments.
            HTTPException: the body cannot be read.
        """
        body = await _body(request) if self._body else None
        faults: Faults = []
        arguments = await self._endpoint.arguments(request, faults)
        if self._body:
            values, errors = await request_body_to_args(
                body_fields=self._body, received_body=body, embed_body_fields=self._embed
            )
            arguments.update(values)
            faults += errors
        if faults:
            raise RequestValidationError(faults)
        response = await self._endpoint.run(**arguments)
        if not isinstance(response, Response):
            raise RuntimeError(f"{self._endpoint.run} gave {type(response)}, which is no response")
        return response


async def _body(request: Request) -> Any:
    """JSON where the request says that it is, else the bytes, which no model takes.

    What another reader on the way could take for something else is refused: a text in another code than UTF-8, a name that
    comes twice in an object (RFC 8259, section 4), a body that was packed.

    Raises:
        MalformedError: it is packed, or a name comes twice.
        RequestValidationError: it is not JSON.
        HTTPException: it is not even text, or cannot be read.
    """
    try:
        content = await request.body()
        if not content:
            return Undefined
        _refuse_packed(request)
        if not _is_json(request.headers.get("content-type", "")):
            return content
        return json.loads(content.decode(), object_pairs_hook=_without_doubles)
    except ShellWeGoError:
        raise
    except json.JSONDecodeError as error:
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "input": {}}]
        ) from error
    except Exception as error:
        raise HTTPException(400, "There was an error parsing the body") from error


def _refuse_packed(request: Request) -> None:
    packed = request.headers.get("content-encoding", "identity")
    if packed.strip().lower() != "identity":
        fault = FieldError("Content-Encoding", "not-taken", "a body is taken as it is, not packed")
        raise MalformedError("malformed", f"{fault.field}: {fault.message}", errors=(fault,))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    (doubled, _), *_ = Counter(name for name, _ in pairs).most_common(1)
    fault = FieldError(doubled[:80], "doubled", "comes twice in an object")
    raise MalformedError("malformed", f"{fault.field}: {fault.message}", errors=(fault,))


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
