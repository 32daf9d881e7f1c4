"""The gate that every call passes: who asks, may they, and what an error looks like outside.

Theory. A gate stands before one listener, for how a caller is known depends on where it came in. It makes a `Call` of the
request, which the servicer finds by `current_call()`, and asks for each thing that it touches: `admit` for one, `reach` for
lists. A servicer that forgets to ask gets no answer out: the gate holds back whatever was not asked for.

Outside, a thing that the caller may not see is absent, in the same words. Errors of the engine become statuses
(`errors.py`); anything else is a defect, of which the caller hears an opaque id, and the log the rest.

Nobody takes what others need: calls count from their arrival, those of a principal against its share, those of the open
services against that of their address, and all kinds together stay below what the listener takes (`opening.py`). So that
a call counts before its request is here, each method is served as one with a stream of requests, of which a plain one
reads the first; on the wire both are the same.

Trap. Who is refused while his first message is still under way may hear of a broken stream in place of the refusal: gRPC's
client gives the failed write precedence over the status. So a stream of requests is refused once its first one is here.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from plasmavmc.deadlines import within
from plasmavmc.errors import CapacityError, ForbiddenError, InvalidSpecError, NotFoundError, PlasmaError
from plasmavmc.rpc.access import Action, Authorizer, Principal, Reach, Request
from plasmavmc.rpc.actions import ACTIONS, OPEN_SERVICES, seeing
from plasmavmc.rpc.errors import DETAILS_KEY, code_of, status_of
from plasmavmc.rpc.shares import Shares
from plasmavmc.types import Scope

log = structlog.get_logger("plasmavmc.rpc")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

FIRST_S = 1.0
"""A call that is to be refused is waited for so long to bring its first request."""
REQUEST_S = 30.0
"""From the opening of a call to its request, where it has one."""
CALLS_EACH, CALLS = 320, 1280
"""At once, with one answer: of one principal, and of all. A connection may have 256, so nobody who has one is refused."""
STREAMS_EACH, STREAMS = 512, 2048
"""The same with many answers, which may never end: one for each command and each VM that somebody follows, and all who use a
host as one user are one principal."""
OPEN_EACH, OPEN = 32, 128
"""Calls of the open services, from one address and from all; and the same of their streams. By a unix socket, which is one
user's, all have no address."""
REFUSALS = 128
"""At once that are waited for as `FIRST_S` says; more are refused without."""


class Identify(Protocol):
    """Tells who calls, from what the transport knows for sure, or from a token."""

    async def __call__(self, context: Context) -> Principal:
        """Raises `UnauthenticatedError`: nobody whom we know."""


@dataclass(slots=True)
class Call:
    """One call, from its arrival to its answer."""

    principal: Principal
    action: Action
    authorizer: Authorizer
    asked: list[Request] = field(default_factory=list)
    """What was asked of the authorizer and allowed."""
    checked: bool = False
    subject: str = ""
    """The thing whose state may forbid what is asked."""
    state: Callable[[], Awaitable[str]] | None = None
    """Its state, for the detail of an error."""

    async def admit(
        self,
        scope: Scope,
        resource: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        absent: NotFoundError | None = None,
    ) -> None:
        """Go on only where the principal may do this to `resource` in `scope`, or make one there with these labels.

        Raises:
            NotFoundError: it may not even see it: `absent`, which is what an absent one would raise.
            ForbiddenError: it sees it, but may not do this.
        """
        await self.admit_all((Request(self.action, scope, resource, labels or {}),), absent=absent)

    async def admit_all(self, requests: Sequence[Request], *, absent: NotFoundError | None = None) -> None:
        """As `admit`, for several questions at once."""
        sights = tuple(replace(each, action=seeing(each.action)) for each in requests)
        decisions = await self.authorizer.authorize_all(self.principal, (*sights, *requests))
        seen, allowed = decisions[: len(requests)], decisions[len(requests) :]
        for request, sight, decision in zip(requests, seen, allowed, strict=True):
            if not sight.allowed:
                raise absent or scope_not_found(request.scope)
            if not decision.allowed:
                raise ForbiddenError(
                    "not-allowed",
                    f"{self.principal.id} may not {request.action} in {request.scope.org}/{request.scope.project}",
                    details=decision.reason,
                    resolution="Ask an administrator for a role that allows it.",
                )
        self.asked += requests
        self.checked = True

    async def reach(self) -> Reach:
        """Where the principal may do this; a list is cut to it."""
        self.checked = True
        return await self.authorizer.reach(self.principal, self.action)

    def home(self, scope: Scope, named: str) -> Scope:
        """The scope that is meant: the one given, else the principal's only one.

        Raises:
            InvalidSpecError: `named`, none was given and the principal has several.
        """
        if scope != Scope("", ""):
            return scope
        if self.principal.scope is None:
            raise InvalidSpecError(named, "name org and project: you have not exactly one")
        return self.principal.scope


def scope_not_found(scope: Scope) -> NotFoundError:
    return NotFoundError("scope-not-found", f"there is no project {scope.org}/{scope.project}")


_current: ContextVar[Call] = ContextVar("call")


def current_call() -> Call:
    """The call that is being served."""
    return _current.get()


class Gate(grpc.aio.ServerInterceptor):
    """See the module's head."""

    def __init__(self, identify: Identify, authorizer: Authorizer) -> None:
        self._identify = identify
        self._authorizer = authorizer
        self._calls = Shares("calls", each=CALLS_EACH, most=CALLS)
        self._streams = Shares("streams", each=STREAMS_EACH, most=STREAMS)
        self._open_calls = Shares("calls of open services", each=OPEN_EACH, most=OPEN)
        self._open_streams = Shares("streams of open services", each=OPEN_EACH, most=OPEN)
        self._refusals = Shares("refusals", each=REFUSALS, most=REFUSALS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = str(handler_call_details.method)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if method.startswith(OPEN_SERVICES):
            shares = self._open_streams if handler.response_streaming else self._open_calls
            return _served(handler, partial(self._open_passage, shares=shares, method=method))
        shares = self._streams if handler.response_streaming else self._calls
        return _served(handler, partial(self._passage, shares=shares, action=ACTIONS[method], method=method))

    @asynccontextmanager
    async def _passage(
        self, context: Context, requests: _Requests, *, shares: Shares, action: Action, method: str
    ) -> AsyncIterator[Callable[[], None]]:
        """A call's way through: known, served, and its error told. Yields what is to be called before each answer."""
        call: Call | None = None
        try:
            principal = await self._identify(context)
            call = Call(principal, action, self._authorizer)
            _hold(context, shares, principal.id)
            _current.set(call)
            yield partial(_hold_back, call, method)
        except PlasmaError as error:
            await self._refuse(context, requests, call, error, method)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # the last line of defence: a defect, of which nothing may get out
            number = secrets.token_hex(8)
            log.exception("rpc.defect", id=number, method=method, error=type(error).__name__)
            await context.abort(grpc.StatusCode.INTERNAL, f"internal error {number}; the server's log has more")
        else:
            if action is not seeing(action):
                log.info("rpc.done", method=method, principal=call.principal.id, subject=call.subject)

    @asynccontextmanager
    async def _open_passage(
        self, context: Context, requests: _Requests, *, shares: Shares, method: str
    ) -> AsyncIterator[Callable[[], None]]:
        """The way of a call that anybody may make."""
        try:
            _hold(context, shares, _address_of(context.peer()) or str(id(context)))
            yield _no_check
        except PlasmaError as error:
            await self._refuse(context, requests, None, error, method)

    async def _refuse(
        self, context: Context, requests: _Requests, call: Call | None, error: PlasmaError, method: str
    ) -> None:
        with suppress(CapacityError), self._refusals.one(""):
            await requests.first()
        await _abort(context, call, error, method)


def _served(handler: Handler, passage: Callable[[Context, _Requests], Any]) -> Handler:
    """The same method behind a passage."""
    plain = handler.unary_unary or handler.unary_stream

    async def one(requests: Any, context: Context) -> Any:
        coming = _Requests(requests)
        async with passage(context, coming) as check:
            answer = await cast("Any", handler.unary_unary)(await coming.only(), context)
            check()
            return answer

    async def many(requests: Any, context: Context) -> AsyncIterator[Any]:
        coming = _Requests(requests)
        async with passage(context, coming) as check:
            inner = cast("Any", handler.unary_stream or handler.stream_stream)
            async with aclosing(inner(await coming.only() if plain else coming, context)) as answers:
                async for answer in answers:
                    check()
                    yield answer

    make: Any = grpc.stream_unary_rpc_method_handler if handler.unary_unary else grpc.stream_stream_rpc_method_handler
    return cast(
        "Handler",
        make(
            one if handler.unary_unary else many,
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        ),
    )


def _hold(context: Context, shares: Shares, who: str) -> None:
    """Count a call until all of it was sent: one whose client takes nothing (a flow-control window of 0) lasts longer than
    the work for it."""
    give_back = shares.take(who)
    context.add_done_callback(cast("Any", lambda _: give_back()))


def _address_of(peer: str) -> str:
    """Where a call comes from, without the port: `ipv4:192.0.2.1:4711` is `ipv4:192.0.2.1`. Empty: by a unix socket."""
    return peer.rpartition(":")[0] if peer.startswith("ip") else ""


def _no_check() -> None:
    """Whoever may connect may have the answer."""


async def _abort(context: Context, call: Call | None, error: PlasmaError, method: str) -> None:
    code, state = code_of(error), ""
    if call is not None and call.state is not None and code is grpc.StatusCode.FAILED_PRECONDITION:
        with suppress(PlasmaError):
            state = await call.state()
    principal = "" if call is None else call.principal.id
    log.info("rpc.refused", method=method, principal=principal, code=code.name, reason=error.code)
    status = status_of(error, subject="" if call is None else call.subject, state=state)
    await context.abort(code, status.message, trailing_metadata=((DETAILS_KEY, status.SerializeToString()),))


def _hold_back(call: Call, method: str) -> None:
    if not call.checked:
        raise AssertionError(f"{method} answers without having asked whether it may")


class _Broken:
    """In place of a request that is no message of its type."""


def _tolerant(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """A deserializer that does not fail: gRPC would log a traceback and answer INTERNAL for what a caller can cause."""
    assert decode is not None  # noqa: S101 - generated services have one

    def tolerant(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _Broken()

    return tolerant


class _Requests:
    """A stream of requests, each of which could be decoded; raises as `_whole`."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests
        self._begun = False

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        request = await anext(self._requests)
        self._begun = True
        return _whole(request)

    async def only(self) -> Any:
        """The one request of a plain call. Raises `InvalidSpecError`: none came in time, or none at all."""
        try:
            async with within(REQUEST_S):
                return await anext(self)
        except TimeoutError:
            log.info("rpc.no_request", why="late")
            raise InvalidSpecError("request", f"none came within {REQUEST_S:g} s") from None
        except StopAsyncIteration:
            log.info("rpc.no_request", why="ended")
            raise InvalidSpecError("request", "the call ended without one") from None

    async def first(self) -> None:
        """Return when the first has come, whatever it is; or when none comes."""
        if not self._begun:
            with suppress(TimeoutError):
                async with within(FIRST_S):
                    await anext(self._requests, None)


def _whole(request: Any) -> Any:
    """Return a request that could be decoded.

    Raises:
        InvalidSpecError: it could not.
    """
    if isinstance(request, _Broken):
        raise InvalidSpecError("request", "it is no message of this method's type")
    return request
