"""An answer that takes its time ends with the right to it: with the token, and with the grant by which it began."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from shellwego.control import audit
from shellwego.control.audit import Anchor, Verification
from shellwego.control.authorization import Access
from shellwego.control.events import ScopeTarget
from shellwego.control.loops.outbox import relay_audit
from shellwego.core.tenancy import Token
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.ports.streams import DuplexStream, StreamHandler, StreamRequest
from tests.api.api_world import Answer, World, add_user, http_scope, keep_backup, keep_volume, withdraw_grants
from tests.api.listener import reach

SECRET = f"pat_{'R' * 43}"
WITHIN_S = 2.0
WAITS = ("app", "deployment", "instance", "volume", "backup")
End = Callable[[World, Token], Awaitable[None]]


async def revoked(world: World, token: Token) -> None:
    """Its user may still do everything, with other tokens."""
    await world.commit(lambda unit: unit.tx.tokens.delete(token.id))


async def withdrawn(world: World, token: Token) -> None:
    """The token holds, and its user may not do this any more."""
    await world.commit(lambda unit: withdraw_grants(unit, token.principal_id))


ENDS = [pytest.param(revoked, 401, id="token"), pytest.param(withdrawn, 404, id="grant")]


@pytest.fixture
async def token(world: World) -> Token:
    return await world.commit(lambda unit: add_user(unit, "r@x", "developer", world.project.id, SECRET))


async def waited_for(world: World, kind: str) -> str:
    """The path of something that will not be what is waited for."""
    deployment = await world.deployed()
    instance = await world.running()
    snapshot = await world.commit(lambda unit: keep_volume(unit, world.project.id, "data", world.node.id))
    backup = await world.commit(lambda unit: keep_backup(unit, snapshot.volume_id))
    return {
        "app": "/v1/apps/shop",
        "deployment": f"/v1/apps/shop/deployments/{deployment['id']}",
        "instance": f"/v1/apps/shop/instances/{instance.id}",
        "volume": "/v1/volumes/data",
        "backup": f"/v1/volumes/data/backups/{backup.id}",
    }[kind]


async def ended(world: World, answer: asyncio.Task[Answer], token: Token, end: End) -> Answer:
    """The answer, which goes on until the right to it ends, and then not for long."""
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(5)
    assert not answer.done()
    await end(world, token)
    before = world.clock.monotonic()
    await reach(world, answer.done)
    assert world.clock.monotonic() - before <= WITHIN_S
    return await answer


@pytest.mark.parametrize(("end", "status"), ENDS)
@pytest.mark.parametrize("kind", WAITS)
async def test_a_wait_ends_with_the_right_to_it(world: World, token: Token, kind: str, end: End, status: int) -> None:
    path = f"{await waited_for(world, kind)}/wait?state=never&timeout=60&project={world.project.id}"
    waiting = asyncio.ensure_future(world.get(path, token=SECRET))
    assert (await ended(world, waiting, token, end)).status == status


@contextlib.asynccontextmanager
async def served(world: World, handler: StreamHandler) -> AsyncIterator[None]:
    task = asyncio.ensure_future(world.streams.serve(world.node.id, handler))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(("end", "status"), ENDS)
async def test_a_command_ends_with_the_right_to_it(world: World, token: Token, end: End, status: int) -> None:
    await world.deployed()
    await world.running()
    begun, left = asyncio.Event(), asyncio.Event()

    async def hang(request: StreamRequest, stream: DuplexStream) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async with served(world, hang):
        body = {"command": ["sleep"], "timeout": 600}
        running = asyncio.ensure_future(world.post("/v1/apps/shop/exec", body, token=SECRET))
        await begun.wait()
        assert (await ended(world, running, token, end)).status == status
        await asyncio.wait_for(left.wait(), 5)


@pytest.fixture
async def auditor(world: World) -> Token:
    """Some records are there that he may read."""
    for number in range(4):
        await world.made("/v1/apps", {"name": f"app-{number}"})
    await relay_audit(world.control)
    return await world.commit(lambda unit: add_user(unit, "a@x", "admin", world.project.organization_id, SECRET))


@pytest.mark.parametrize(("end", "_status"), ENDS)
async def test_an_export_ends_with_the_right_to_it_and_without_its_last_line(
    world: World, auditor: Token, monkeypatch: pytest.MonkeyPatch, end: End, _status: int
) -> None:
    monkeypatch.setattr(audit, "BATCH", 1)
    body = b""

    async def take(message: MutableMapping[str, Any]) -> None:
        nonlocal body
        body += message.get("body", b"")
        if body.count(b"\n") == 2:
            await end(world, auditor)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    scope = http_scope("/v1/audit/export", {"authorization": f"Bearer {SECRET}"})
    async with asyncio.timeout(10):
        await world.app(scope, receive, take)
    lines = [json.loads(line) for line in body.splitlines()]
    assert [line["position"][-1] for line in lines] == ["1", "2"]


@pytest.mark.parametrize(("end", "status"), ENDS)
async def test_a_verification_ends_with_the_right_to_it(
    world: World, auditor: Token, monkeypatch: pytest.MonkeyPatch, end: End, status: int
) -> None:
    async def walk_on(_access: Access, _target: ScopeTarget, _anchor: Anchor | None) -> Verification:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(audit, "verify", walk_on)
    path = f"/v1/audit/verify?organization={world.project.organization_id}"
    verifying = asyncio.ensure_future(world.get(path, token=SECRET))
    assert (await ended(world, verifying, auditor, end)).status == status
