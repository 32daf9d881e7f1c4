"""Whoever asks the platform for something: one thing after another, each until it has an answer.

Each request goes through the one choke point (`control.authorization.Access`) with an idempotency key, as the REST rim does
it, and is asked again under its key where no answer came. So after an answer each request was done once: told by the events
that carry its trace id.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shellwego.control.authorization import Access
from shellwego.control.idempotency import Answer, make_key
from shellwego.control.unit import Caller, Unit
from shellwego.core.errors import ShellWeGoError, UnavailableError
from tests.sim.story import Event
from tests.sim.timeline import Gate
from tests.sim.ways import Wire

if TYPE_CHECKING:
    from tests.sim.server import Server
    from tests.sim.world import World

R = TypeVar("R")
Told = Mapping[str, object]
"""What an answer says."""
_REFUSED_BY_RIGHT = ("registry-unreachable",)
"""Codes of a part that does not answer, which is taken as an answer."""


@dataclass(frozen=True, slots=True)
class Request:
    operation: str
    name: str
    """Of the app or node; empty: of neither."""
    number: int
    tag: str
    """Trace id and idempotency key."""


class Client(ABC):
    """All requests of one caller, in their order."""

    effects: Mapping[str, str] = {}
    """The event by which each operation is told, once."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.busy = False
        self.waiting = 0
        self._under_way = 0
        self._dice = world.dice(name)
        self._wire = Wire(world, Gate(), self._dice)
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def ask(self, event: Event) -> None:
        self.waiting += 1
        self._queue.put_nowait(event)

    @property
    def idle(self) -> bool:
        """Nothing is asked that has no answer."""
        return not self.waiting

    async def run(self) -> None:
        """Ask until cancelled."""
        count = 0
        while True:
            event = await self._queue.get()
            count += 1
            self.busy = True
            await self._request(self._meant(event, f"{self.name}/{count}"))
            self.busy = False
            self.waiting -= 1

    @abstractmethod
    def check(self) -> None:
        """What was acknowledged is stored."""

    @abstractmethod
    def _meant(self, event: Event, tag: str) -> Request:
        """The request that an event stands for, now."""

    @abstractmethod
    async def _do(self, server: Server, request: Request) -> Told:
        """What the server's rim does with a request."""

    @abstractmethod
    def _done(self, request: Request, answer: Told) -> None:
        """It was done: learn from the answer."""

    @abstractmethod
    def _refused(self, request: Request, error: ShellWeGoError) -> None:
        """It was refused, and nothing was done."""

    async def _request(self, request: Request) -> None:
        for kind in self._world.faults.kinds or ["none"]:
            self._world.counts[kind, request.operation] += 1
        answer = await self._answered(request)
        outcome = f"refused: {answer.code}" if isinstance(answer, ShellWeGoError) else "done"
        self._world.outcomes[request.operation, outcome] += 1
        self._world.watch.note(f"{request.tag} {request.operation} ({request.number}) {outcome}")
        self._learn(request, answer)

    async def _answered(self, request: Request) -> Told | ShellWeGoError:
        """Ask again under the same key until there is an answer.

        A refusal says nothing of an earlier try that had no answer and may still be under way: it is waited for.
        """
        unanswered = False
        while True:
            try:
                return await self._wire.call(lambda server: self._served(server, request), "client")
            except ShellWeGoError as error:
                if isinstance(error, UnavailableError) and error.code not in _REFUSED_BY_RIGHT:
                    unanswered = True
                    await self._world.clock.sleep(self._dice.uniform(0.05, 0.5))
                    continue
                if not unanswered:
                    return error
                unanswered = False
                while self._under_way:
                    await self._world.clock.sleep(0.2)

    async def _served(self, server: Server, request: Request) -> Told:
        self._under_way += 1
        try:
            return await self._do(server, request)
        finally:
            self._under_way -= 1

    def _learn(self, request: Request, answer: Told | ShellWeGoError) -> None:
        told = self._world.watch.events[request.tag, self.effects.get(request.operation, "")]
        if isinstance(answer, ShellWeGoError):
            if told:
                self._violated("refused-and-done", request, answer.code)
            self._refused(request, answer)
            return
        expected = 1 if answer.get("effect", True) else 0
        if request.operation in self.effects and told != expected:
            self._violated("not-once", request, f"it was done {told} times")
        self._done(request, answer)

    def _access(self, server: Server, request: Request, permission: str) -> Access:
        principal = self._world.viewer if request.operation == "denied" else self._world.owner
        caller = Caller(actor=self._world.owner.principal_id, trace_id=request.tag)
        key = make_key(principal.principal_id, request.tag, request.operation.encode(), b"%d" % request.number)
        return Access(server.control, principal, permission, caller, key)

    def _violated(self, name: str, request: Request, detail: str) -> None:
        what = f"{request.operation} of {request.name or 'all'} ({request.tag})"
        self._world.watch.violated(name, f"{what}: {detail}")


def answering(work: Callable[[Unit, R], Told]) -> Callable[[Unit, R], Answer]:
    """A use case whose outcome can be told again."""
    return lambda unit, found: Answer(200, json.dumps(work(unit, found)))


def told(answer: Answer) -> Told:
    """What an answer says."""
    said: Told = json.loads(answer.body)
    return said
