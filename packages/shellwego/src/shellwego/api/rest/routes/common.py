"""Parameters that many operations share."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.requests import HTTPConnection

from shellwego.api.rest.context import Context, context_of
from shellwego.api.rest.guard import GuardedRoute, tags
from shellwego.control.throttling import source_of


async def _here(connection: HTTPConnection) -> Context:
    return context_of(connection)


Here = Annotated[Context, Depends(_here)]
"""The parameter by which an endpoint gets what the API stands on."""


async def _source(connection: HTTPConnection) -> str:
    return source_of(connection.client.host if connection.client else "")


Source = Annotated[str, Depends(_source)]
"""The parameter by which an endpoint gets whom an address stands for. Headers of proxies are not believed."""
Ref = Annotated[str, Path(min_length=1, max_length=255, description="Id or name.")]
Id = Annotated[str, Path(min_length=1, max_length=64)]


def resource_router(tag: str, prefix: str = "/v1") -> APIRouter:
    """A router whose routes are all guarded."""
    return APIRouter(prefix=prefix, tags=tags(tag), route_class=GuardedRoute)
