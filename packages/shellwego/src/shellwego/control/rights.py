"""The right to what lasts: asked anew while it lasts, so that it ends with the token and the grants by which it began."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import NoReturn, TypeVar

from shellwego.control.authentication import Authenticator
from shellwego.control.authorization import Access
from shellwego.control.targets import Target
from shellwego.core.errors import ShellWeGoError, UnavailableError
from shellwego.ports.clock import Waiter

R = TypeVar("R")

CHECK_S = 1.0
"""How often it is asked where nothing else gives the pace."""


async def renew(authenticator: Authenticator, access: Access) -> None:
    """Have the access be of what its caller may now: what is read by it from here on is judged by that.

    Raises:
        UnauthenticatedError: his token was revoked or has expired.
    """
    access.principal = await authenticator.refresh(access.principal)


async def until_refused(
    authenticator: Authenticator, access: Access, target: Target[R] | None, stopping: asyncio.Event
) -> NoReturn:
    """Go on until the caller may not do this to the target any more (None: until his token does not hold), or the server
    stops. A store that does not answer refuses nobody: it is asked again.

    Raises:
        UnauthenticatedError: as `renew`.
        ForbiddenError, NotFoundError: as `Access.read` of the target.
        UnavailableError: the server stops.
    """
    async with aclosing(Waiter(access.control.clock, stopping.wait)) as waiter:
        while True:
            await waiter.wait(CHECK_S)
            if stopping.is_set():
                raise UnavailableError("server-stopping", "the server stops; come again")
            try:
                await renew(authenticator, access)
                if target is not None:
                    await access.read(target, lambda _tx, _found: None)
            except ShellWeGoError as error:
                if not error.temporary:
                    raise
