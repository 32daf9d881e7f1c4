"""The rim's side of the choke point: every operation is added by `operation`, with the permission that it needs.

A guarded route authenticates before it reads the body, counts the request against the token's rate, refuses unknown query
parameters, and hands the endpoint an `Access`. An endpoint that answers without having asked its access is a defect, and
its answer is thrown away. `check_guarded` refuses an app in which any route goes around this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, APIWebSocketRoute
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from shellwego.api.ratelimit import Verdict
from shellwego.api.rest.calls import Call
from shellwego.api.rest.context import context_of
from shellwego.api.rest.cookies import refuse_cross_site, session_cookie
from shellwego.api.rest.problems import SENSITIVE, Problem, problem, problem_of
from shellwego.api.rest.watch import WATCH, watched
from shellwego.control.authentication import Session, refused
from shellwego.control.authorization import Access
from shellwego.control.idempotency import make_key
from shellwego.control.unit import Caller
from shellwego.core.errors import FieldError, MalformedError, ShellWeGoError, ThrottledError
from shellwego.core.tenancy import Principal

PUBLIC = "public"
"""The permission of an operation that anybody may call."""
_PERMISSION = "x-permission"
_ANYWHERE = (400, 413, 422)
_GUARDED = (401, 403, 404, 429, 503)
_WRITES = (409,)
_MAX_KEY = 255
_USED_UP = "the token has used up its requests for now"

Endpoint = Callable[..., Awaitable[Any]]


def operation(
    router: APIRouter,
    method: str,
    path: str,
    *,
    permission: str,
    answer: type[BaseModel] | None,
    status: int = 200,
    refusals: Iterable[int] = (),
    media_type: str = "",
    extra: dict[str, Any] | None = None,
    seconds: int = 0,
    sensitive: bool = False,
) -> Callable[[Endpoint], Endpoint]:
    """Add an operation under its permission; its name in OpenAPI is that of the function.

    `answer` is the model of the success answer, and `refusals` the statuses that it can give beside those that all can.
    `seconds`: how long an answer may take where that is more than a minute and a half; clients wait as long.
    `sensitive`: the body holds a value that nothing may repeat, not even the answer to a mistake.
    """
    guarded = () if permission == PUBLIC else _GUARDED
    writes = () if method == "GET" else _WRITES
    statuses = sorted({*_ANYWHERE, *guarded, *writes, *refusals})
    responses: dict[int | str, dict[str, Any]] = {code: _problem_response() for code in statuses}
    if media_type:
        responses[status] = {"content": {media_type: {"schema": {"type": "string"}}}}

    def add(endpoint: Endpoint) -> Endpoint:
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=answer,
            status_code=status,
            responses=responses,
            operation_id=endpoint.__name__,
            response_class=Response if answer is None else JSONResponse,
            dependencies=[] if method == "GET" or permission == PUBLIC else [Depends(_idempotency_key)],
            openapi_extra={_PERMISSION: permission, **_marks(seconds, sensitive=sensitive), **(extra or {})},
        )
        return endpoint

    return add


def _marks(seconds: int, *, sensitive: bool) -> dict[str, Any]:
    """What the document says of an operation beside its permission."""
    return {**({"x-seconds": seconds} if seconds else {}), **({SENSITIVE: True} if sensitive else {})}


async def _idempotency_key(
    key: Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=_MAX_KEY)] = None,
) -> None:
    """Only tells the document of the header; the guarded route reads it, before the body is parsed."""


def _problem_response() -> dict[str, Any]:
    return {"model": Problem}


class GuardedRoute(APIRoute):
    """A route that answers only through an `Access`, unless it is public."""

    @cached_property
    def permission(self) -> str:
        return str((self.openapi_extra or {}).get(_PERMISSION, ""))

    @cached_property
    def sensitive(self) -> bool:
        return SENSITIVE in (self.openapi_extra or {})

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._public = self.permission == PUBLIC
        self._call = Call(self.dependant, embed_body=self._embed_body_fields)
        self._parameters = {cast(str, parameter.alias) for parameter in _query_parameters(self)}
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the request holds of its caller's shares it holds until its answer is whole."""
        request = Request(scope, receive, send)
        with ExitStack() as held:
            try:
                response = await self._answer(request, held)
            except (ShellWeGoError, RequestValidationError, HTTPException) as error:
                response = problem_of(request, error)
            await response(scope, receive, send)

    async def _answer(self, request: Request, held: ExitStack) -> Response:
        if self._public:
            check_parameters(request, self._parameters)
            return await self._call(request)
        session = await authenticate(request)
        verdict = _judge(request, session)
        if verdict is not None and not verdict.allowed:
            return _too_many(request, verdict)
        shares = context_of(request).shares
        held.enter_context(shares.request(session.principal))
        check_parameters(request, self._parameters)
        request.state.access = await _access(request, session, self)
        response = await self._asked(request)
        if WATCH in self._parameters and request.query_params.get(WATCH) == "true":
            response = watched(context_of(request), response, lambda: self._asked_again(request))
        if isinstance(response, StreamingResponse):
            held.enter_context(shares.lasting(request.state.access))
        if verdict is not None:
            response.headers.update(verdict.headers)
        return response

    async def _asked(self, request: Request) -> Response:
        response = await self._call(request)
        if not request.state.access.decided:
            raise RuntimeError(f"{self.operation_id} answered without asking its access")
        return response

    async def _asked_again(self, request: Request) -> Response:
        context = context_of(request)
        await context.shares.turn(context.control.clock, request.state.access, context.stopping)
        principal = await context.authenticator.refresh(request.state.access.principal)
        request.state.access = make_access(request, principal, self.permission)
        return await self._asked(request)


def _query_parameters(route: APIRoute) -> list[Any]:
    """The query parameters of the endpoint and of all that it depends on."""
    found: list[Any] = []
    queue = [route.dependant]
    while queue:
        dependant = queue.pop()
        found += dependant.query_params
        queue += dependant.dependencies
    return found


def check_parameters(request: HTTPConnection, allowed: AbstractSet[str], repeated: str = "") -> None:
    """Refuse query parameters that the operation does not have, or that come twice (only `repeated` may), because another
    reader might take the other one; and the character NUL in any of them: no name or id holds it, and not every store can
    be asked for it.

    Raises:
        MalformedError: naming the parameter.
    """
    queried = request.query_params if request.scope["query_string"] else QueryParams()
    unknown = [name for name in queried if name not in allowed]
    if unknown:
        fault = FieldError(unknown[0][:80], "unknown-parameter", "the operation has no such query parameter")
        raise MalformedError("unknown-parameter", f"{fault.field}: {fault.message}", errors=(fault,))
    items = [(name, value) for name, value in queried.multi_items() if name != repeated]
    names = [name for name, _ in items]
    if len(set(names)) < len(names):
        doubled = next(name for name in queried if names.count(name) > 1)
        fault = FieldError(doubled, "doubled", "the query parameter comes twice")
        raise MalformedError("malformed", f"{fault.field}: {fault.message}", errors=(fault,))
    for name, value in (*request.path_params.items(), *items):
        if "\0" in str(value):
            fault = FieldError(name[:80], "bad-character", "holds the character NUL")
            raise MalformedError("malformed", f"{fault.field}: {fault.message}", errors=(fault,))


async def authenticate(connection: HTTPConnection) -> Session:
    """Who asks, by the bearer token of the Authorization header, else by the session cookie of a browser.

    Raises:
        UnauthenticatedError: neither holds.
        ForbiddenError: the cookie came with a request that another site may have made the browser send.
    """
    header = connection.headers.get("authorization")
    secret = session_cookie(connection) if header is None else _bearer(header)
    session = await context_of(connection).authenticator.session(secret)
    if header is None:
        refuse_cross_site(connection)
    return session


def _bearer(header: str) -> str:
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer":
        raise refused()
    return secret.strip()


def _judge(connection: HTTPConnection, session: Session) -> Verdict | None:
    context = context_of(connection)
    return context.limiter.judge(session.principal.token_id, session.plan, context.control.clock.monotonic())


def _too_many(request: Request, verdict: Verdict) -> Response:
    return problem(
        request,
        429,
        "rate-limited",
        _USED_UP,
        resolution=_again_in(verdict),
        headers=verdict.headers,
    )


def _again_in(verdict: Verdict) -> str:
    return f"Try again in {verdict.retry_after_s} s."


async def _access(request: Request, session: Session, route: GuardedRoute) -> Access:
    access = make_access(request, session.principal, route.permission)
    key = request.headers.get("idempotency-key")
    if key and request.method != "GET":
        if len(key) > _MAX_KEY:
            raise MalformedError("bad-idempotency-key", f"an Idempotency-Key has at most {_MAX_KEY} characters")
        parts = (request.method.encode(), request.url.path.encode(), request.url.query.encode(), await request.body())
        access.key = make_key(_keeper(session.principal), key, *parts, sensitive=route.sensitive)
    return access


def _keeper(principal: Principal) -> str:
    """Whose answers are kept together: a principal's; those of a token that may less than he are its own."""
    return principal.token_id if principal.scopes or principal.resources else principal.principal_id


def make_access(connection: HTTPConnection, principal: Principal, permission: str) -> Access:
    """What this principal may do with this permission."""
    caller = Caller(actor=principal.principal_id, trace_id=connection.scope.get("trace_id", ""))
    return Access(context_of(connection).control, principal, permission, caller)


async def admit_socket(connection: HTTPConnection, permission: str) -> Access:
    """The access of a WebSocket, before it is accepted; raises as a guarded route answers."""
    session = await authenticate(connection)
    verdict = _judge(connection, session)
    if verdict is not None and not verdict.allowed:
        raise ThrottledError(
            "rate-limited", _USED_UP, resolution=_again_in(verdict), retry_after_s=verdict.retry_after_s
        )
    return make_access(connection, session.principal, permission)


async def _granted(request: Request) -> Access:
    """Asynchronous, as every dependency here: FastAPI runs others in a thread, which costs more than they do."""
    return cast(Access, request.state.access)


Granted = Annotated[Access, Depends(_granted)]
"""The parameter by which an endpoint of a guarded route gets its access."""


def check_guarded(app: FastAPI, own: Iterable[str]) -> None:
    """Refuse an app with a route that nobody guards; `own` are paths of the documentation.

    Raises:
        RuntimeError: names the route.
    """
    paths = set(own)
    for route in _all_routes(app.routes):
        if isinstance(route, APIRoute):
            if not (isinstance(route, GuardedRoute) and route.permission):
                raise RuntimeError(f"the route {route.path} declares no permission")
        elif isinstance(route, Route) and route.path not in paths:
            raise RuntimeError(f"the route {route.path} is not guarded")
        elif isinstance(route, APIWebSocketRoute) and not getattr(route.endpoint, "permission", ""):
            raise RuntimeError(f"the socket {route.path} declares no permission")


def operations(app: FastAPI) -> list[GuardedRoute]:
    """All of an app, in the order of their declaration."""
    return [route for route in _all_routes(app.routes) if isinstance(route, GuardedRoute)]


def _all_routes(routes: Iterable[BaseRoute]) -> Iterable[BaseRoute]:
    for route in routes:
        yield route
        yield from _all_routes(getattr(route, "routes", None) or ())


def tags(*names: str) -> list[str | Enum]:
    """Tags in the type that a router wants."""
    return list(names)
