"""The right to an answer that takes its time (`control.rights`), as routes ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

from shellwego.api.rest.context import Context
from shellwego.control import rights
from shellwego.control.authorization import Access
from shellwego.control.targets import Target

R = TypeVar("R")
T = TypeVar("T")


async def renew(context: Context, access: Access) -> None:
    """As `control.rights.renew`."""
    await rights.renew(context.authenticator, access)


async def until_refused(context: Context, access: Access, target: Target[R]) -> NoReturn:
    """As `control.rights.until_refused`."""
    await rights.until_refused(context.authenticator, access, target, context.stopping)


async def while_allowed(context: Context, access: Access, target: Target[R], work: Coroutine[Any, Any, T]) -> T:
    """What the work gives, if the caller may do this to the target until it has; else it is cancelled. Raises as
    `control.rights.until_refused`, and what the work raises. A server that stops waits for it."""
    never = asyncio.Event()
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(rights.until_refused(context.authenticator, access, target, never))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else watching.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
