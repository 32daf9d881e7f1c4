"""The right to an answer that takes its time: asked anew while it is made, so that it ends with the token and the grants by
which it began."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from shellwego.api.rest.context import Context
from shellwego.control.authorization import Access
from shellwego.control.targets import Target
from shellwego.core.errors import ShellWeGoError

R = TypeVar("R")
T = TypeVar("T")

CHECK_S = 1.0
"""How often it is asked where nothing else gives the pace."""


async def renew(context: Context, access: Access) -> None:
    """Have the access be of what its caller may now: what is read by it from here on is judged by that.

    Raises:
        UnauthenticatedError: his token was revoked or has expired.
    """
    access.principal = await context.authenticator.refresh(access.principal)


async def check_still(context: Context, access: Access, target: Target[R]) -> None:
    """As `renew`; raises also what `Access.read` of the target raises."""
    await renew(context, access)
    await access.read(target, lambda _tx, _found: None)


async def while_allowed(context: Context, access: Access, target: Target[R], work: Coroutine[Any, Any, T]) -> T:
    """What the work gives, if the caller may do this to the target until it has; else it is cancelled. Raises as
    `check_still`, and what the work raises."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_refused(context, access, target))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else watching.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _until_refused(context: Context, access: Access, target: Target[R]) -> NoReturn:
    while True:
        await context.control.clock.sleep(CHECK_S)
        try:
            await check_still(context, access, target)
        except ShellWeGoError as error:
            if not error.temporary:
                raise
