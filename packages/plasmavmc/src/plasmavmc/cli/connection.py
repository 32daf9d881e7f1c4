"""How a command reaches the server: by what the root command was given."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from plasmavmc.cli.ends import INTERRUPTED, USAGE, Failure, failure_of

if TYPE_CHECKING:
    from plasmavmc.rpc.client import ClientTls, EngineClient
    from plasmavmc.types import Scope

Result = TypeVar("Result")

TOKEN_VARIABLE = "PLASMAVMC_TOKEN"  # noqa: S105 - the name of a variable
DEFAULT_PROJECT = "default/default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What the root command was given."""

    server: str = "unix:/run/plasmavmc/plasmavmc.sock"
    project: str = ""
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None

    def scope(self) -> Scope | None:
        """Whose things are meant; None leaves that to the server, which knows who has exactly one."""
        from plasmavmc.types import Scope  # noqa: PLC0415

        local_root = self.server.startswith("unix:") and not self.token() and os.geteuid() == 0
        project = self.project or (DEFAULT_PROJECT if local_root else "")
        if not project:
            return None
        org, slash, name = project.partition("/")
        if not (org and slash and name) or "/" in name:
            raise Failure(f"--project: {project[:80]!r} is not ORG/PROJECT", code=USAGE)
        return Scope(org, name)

    def token(self) -> str:
        """The token, which never comes by a command line: all users of a host see those."""
        if self.token_file is None:
            return os.environ.get(TOKEN_VARIABLE, "")
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise Failure(f"--token-file: {self.token_file} cannot be read: {error.strerror}", code=USAGE) from error

    def tls(self) -> ClientTls | None:
        """Certificates, all or none."""
        from plasmavmc.rpc.client import ClientTls  # noqa: PLC0415

        if self.tls_cert and self.tls_key and self.tls_ca:
            return ClientTls(self.tls_cert, self.tls_key, self.tls_ca)
        if self.tls_cert or self.tls_key or self.tls_ca:
            raise Failure("give --tls-cert, --tls-key and --tls-ca together", code=USAGE)
        return None


def connection() -> Connection:
    """What the running command was given."""
    found = click.get_current_context().find_object(Connection)
    return found if found is not None else Connection()


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


async def _interruptible(work: Coroutine[Any, Any, Result]) -> Result:
    loop, task, ended_by = asyncio.get_running_loop(), asyncio.ensure_future(work), 0

    def end(number: int) -> None:
        nonlocal ended_by
        ended_by = number
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if ended_by:
            raise click.exceptions.Exit(INTERRUPTED if ended_by == signal.SIGINT else 128 + ended_by) from None
        raise
