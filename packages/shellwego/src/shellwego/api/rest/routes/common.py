"""Parameters that many operations share."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from shellwego.api.rest.context import Context, context_of
from shellwego.api.rest.guard import GuardedRoute, tags
from shellwego.control.scopes import AppTarget

Here = Annotated[Context, Depends(context_of)]
"""The parameter by which an endpoint gets what the API stands on."""
Ref = Annotated[str, Path(min_length=1, max_length=255, description="Id or name.")]
Id = Annotated[str, Path(min_length=1, max_length=64)]


def resource_router(tag: str, prefix: str = "/v1") -> APIRouter:
    """A router whose routes are all guarded."""
    return APIRouter(prefix=prefix, tags=tags(tag), route_class=GuardedRoute)


def target(app: str, project: str) -> AppTarget:
    """The app that a path and a query name."""
    return AppTarget(app, project)
