"""A command's work: done in a loop of its own, over a connection, and ended by signals as a command should be."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import click

from plasmavmc.cli.connection import connection
from plasmavmc.cli.ends import INTERRUPTED, failure_of

if TYPE_CHECKING:
    from plasmavmc.rpc.client import EngineClient

Result = TypeVar("Result")


def with_engine(work: Callable[[EngineClient], Awaitable[Result]], *, running: bool = False) -> Result:
    """Connect, do the work, and return what it returns. `running`: see `failure_of`.

    Raises:
        Failure: in the words of whoever refused.
    """
    here = connection()

    async def connected() -> Result:
        from plasmavmc.rpc.client import connect  # noqa: PLC0415 - gRPC is heavy

        async with connect(here.server, token=here.token(), tls=here.tls()) as engine:
            return await work(engine)

    return run_work(connected(), running=running)


def run_work(work: Coroutine[Any, Any, Result], *, running: bool = False) -> Result:
    """Run to its end. Ctrl-C and SIGTERM cancel it, so that what it opened is closed, and end with 130 and 143."""
    from plasmavmc.errors import PlasmaError  # noqa: PLC0415

    try:
        return asyncio.run(_interruptible(work))
    except PlasmaError as error:
        raise failure_of(error, running=running) from error
    except BrokenPipeError:
        sys.stdout = None  # whoever read us is gone; nothing is left to flush to
        raise click.exceptions.Exit(128 + signal.SIGPIPE) from None


_arming: ContextVar[Callable[[], None]] = ContextVar("arming")


def rearm() -> None:
    """Let signals end the command again, after something else has listened to them."""
    arm = _arming.get(None)
    if arm is not None:
        arm()


async def _interruptible(work: Coroutine[Any, Any, Result]) -> Result:
    loop, ended_by = asyncio.get_running_loop(), 0

    def end(number: int) -> None:
        nonlocal ended_by
        ended_by = number
        task.cancel()

    def arm() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)

    _arming.set(arm)
    task = asyncio.ensure_future(work)
    arm()
    try:
        return await task
    except asyncio.CancelledError:
        if ended_by:
            raise click.exceptions.Exit(INTERRUPTED if ended_by == signal.SIGINT else 128 + ended_by) from None
        raise
