"""Which operation a path is of, found by its words; Starlette would try all in turn, a pattern each.

Only operations are in the table, in the order of their declaration. Everything else (no such path or method, documentation,
WebSockets) goes on to the application's own router, which would find the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.convertors import StringConvertor
from starlette.types import ASGIApp, Receive, Scope, Send

from shellwego.api.rest.guard import GuardedRoute

_WORD = 2
"""Of `/v1/apps/…` the word that tells most of the operations apart."""
_Key = tuple[str, int, str]


class RouteTable:
    """Middleware that hands a request to its operation."""

    def __init__(self, app: ASGIApp, operations: Iterable[GuardedRoute]) -> None:
        self._app = app
        self._operations: dict[_Key, list[GuardedRoute]] = {}
        for route in operations:
            key = _key("", route.path)
            if "{" not in key[2] and all(type(each) is StringConvertor for each in route.param_convertors.values()):
                for method in route.methods or ():
                    self._operations.setdefault((method, *key[1:]), []).append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.find(scope) if scope["type"] == "http" and not scope.get("root_path") else None
        if route is None:
            await self._app(scope, receive, send)
        else:
            await route.app(scope, receive, send)

    def find(self, scope: Scope) -> GuardedRoute | None:
        """The operation that is asked for; notes it in the scope as the router does."""
        path: str = scope["path"]
        for route in self._operations.get(_key(scope["method"], path), ()):
            match = route.path_regex.match(path)
            if match is not None:
                scope.update(route=route, endpoint=route.endpoint, path_params=match.groupdict())
                return route
        return None


def _key(method: str, path: str) -> _Key:
    words = path.split("/")
    return method, len(words), words[_WORD] if len(words) > _WORD else ""
