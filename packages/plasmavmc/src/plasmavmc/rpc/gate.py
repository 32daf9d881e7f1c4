"""The gate that every call passes: who asks, may they, and what an error looks like outside.

Theory. A gate stands before one listener, for how a caller is known depends on where it came in. It makes a `Call` of the
request, which the servicer finds by `current_call()`, and asks for each thing that it touches: `admit` for one, `reach` for
lists. A servicer that forgets to ask gets no answer out: the gate holds back whatever was not asked for.

Outside, a thing that the caller may not see is absent, in the same words. Errors of the engine become statuses
(`errors.py`); anything else is a defect, of which the caller hears an opaque id, and the log the rest.

Trap. Who is refused while his first message is still under way may hear of a broken stream in place of the refusal: gRPC's
client gives the failed write precedence over the status. So a stream of requests is refused once its first one is here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from plasmavmc.errors import ForbiddenError, InvalidSpecError, NotFoundError, PlasmaError
from plasmavmc.rpc.access import Action, Authorizer, Principal, Reach, Request
from plasmavmc.rpc.actions import ACTIONS, OPEN_SERVICES, seeing
from plasmavmc.rpc.errors import DETAILS_KEY, code_of, status_of
from plasmavmc.types import Scope

log = structlog.get_logger("plasmavmc.rpc")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

FIRST_S = 1.0
"""A stream of requests that is to be refused is waited for so long to bring its first."""


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

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = str(handler_call_details.method)
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(OPEN_SERVICES):
            return handler
        return self._guarded(handler, ACTIONS[method], method)

    def _guarded(self, handler: Handler, action: Action, method: str) -> Handler:
        """The same method behind the gate."""
        if handler.unary_unary:
            make: Any = grpc.unary_unary_rpc_method_handler
            behaviour: Any = self._one(cast("Any", handler.unary_unary), action, method)
        elif handler.unary_stream:
            make = grpc.unary_stream_rpc_method_handler
            behaviour = self._many(cast("Any", handler.unary_stream), action, method)
        else:
            make = grpc.stream_stream_rpc_method_handler
            behaviour = self._many(cast("Any", handler.stream_stream), action, method)
        decode = handler.request_deserializer
        return cast(
            "Handler",
            make(
                behaviour,
                request_deserializer=_tolerant(decode),
                response_serializer=handler.response_serializer,
            ),
        )

    def _one(
        self, inner: Callable[[Any, Context], Awaitable[Any]], action: Action, method: str
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def guarded(request: Any, context: Context) -> Any:
            async with self._passage(context, action, method) as call:
                answer = await inner(_whole(request), context)
                _hold_back(call, method)
                return answer

        return guarded

    def _many(
        self, inner: Callable[[Any, Context], AsyncIterator[Any]], action: Action, method: str
    ) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            requests = _Requests(request) if hasattr(request, "__aiter__") else None
            async with self._passage(context, action, method, requests) as call:
                answers = cast("Any", inner(_whole(request) if requests is None else requests, context))
                async with aclosing(answers):
                    async for answer in answers:
                        _hold_back(call, method)
                        yield answer

        return guarded

    @asynccontextmanager
    async def _passage(
        self, context: Context, action: Action, method: str, requests: _Requests | None = None
    ) -> AsyncIterator[Call]:
        """A call's way through: known, served, and its error told."""
        call: Call | None = None
        try:
            call = Call(await self._identify(context), action, self._authorizer)
            _current.set(call)
            yield call
        except PlasmaError as error:
            if requests is not None:
                await requests.first()
            await _refuse(context, call, error, method)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # the last line of defence: a defect, of which nothing may get out
            number = secrets.token_hex(8)
            log.exception("rpc.defect", id=number, method=method, error=type(error).__name__)
            await context.abort(grpc.StatusCode.INTERNAL, f"internal error {number}; the server's log has more")
        else:
            if action is not seeing(action):
                log.info("rpc.done", method=method, principal=call.principal.id, subject=call.subject)


async def _refuse(context: Context, call: Call | None, error: PlasmaError, method: str) -> None:
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

    async def first(self) -> None:
        """Return when the first has come, whatever it is; or when none comes."""
        if not self._begun:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_S):
                    await anext(self._requests, None)


def _whole(request: Any) -> Any:
    """Return a request that could be decoded.

    Raises:
        InvalidSpecError: it could not.
    """
    if isinstance(request, _Broken):
        raise InvalidSpecError("request", "it is no message of this method's type")
    return request
