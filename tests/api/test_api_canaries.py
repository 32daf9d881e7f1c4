"""Canaries: planted where secrets are, and searched for in all that the platform writes or shows.

Values, tokens and a master key go through everything that can be done with a secret, mistakes included, on a database on
disk; then its files are read as bytes, every GET of the API is asked, and what was logged is looked through. That a guest
sees the value, and the host's processes and files do not, is shown by a real one in `tests/real`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shellwego.control.assignments import assignments
from shellwego.control.delivery import Delivery
from shellwego.control.loops.outbox import relay
from shellwego.control.loops.rewrap import Rewrapper
from shellwego.core.assignments import SecretsRequest
from shellwego.core.errors import ShellWeGoError
from shellwego.core.instances import Instance
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.sqlite import open_sqlite
from tests.api.api_world import ADMIN, DOCUMENT, FOREIGN, OWNER, VIEWER, World, make_world

FIRST, SECOND, THIRD, PLAIN = "canary-one-f00d", "canary-two-f00d", "canary-three-f00d", "plain-value-beef"
VALUES = (FIRST, SECOND, THIRD)
TOKENS = (ADMIN, OWNER, VIEWER, FOREIGN)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = SystemClock()
    (tmp_path / "db").mkdir()
    store = open_sqlite(tmp_path / "db" / "state.db", clock)
    yield await make_world(tmp_path / "spool", clock=clock, store=store)
    await store.close()


def disguises(value: str) -> list[bytes]:
    """The value as it may be written by accident."""
    raw = value.encode()
    return [raw, base64.b64encode(raw).rstrip(b"="), raw.hex().encode(), repr(raw)[2:-1].encode(), raw[::-1]]


def found(content: bytes, values: tuple[str, ...] = VALUES) -> list[str]:
    return [value for value in values for each in disguises(value) if each in content]


async def use_secrets(world: World) -> Instance:
    """All that can be done with secrets, and what can go wrong with them; returns an instance that has them."""
    key = {"idempotency-key": "a-key"}
    await world.made(
        "/v1/secrets", {"name": "A", "value": FIRST, "description": "d", "metadata": {"k": "v"}}, headers=key
    )
    await world.made(
        "/v1/secrets", {"name": "A", "value": FIRST, "description": "d", "metadata": {"k": "v"}}, headers=key
    )
    await mistakes(world)
    world.images.publish("registry.example/hello:v1")
    await world.made("/v1/apps", {"name": "shop", "env": {"A": {"secret": "A"}, "PLAIN": PLAIN}})
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1", "port": 8080})
    await world.running()
    await world.made("/v1/secrets/A/versions", {"value": SECOND})
    await world.made("/v1/apps/shop/plan", {})
    await world.made("/v1/apps/shop/deployments", {})
    instance = await world.running()
    await deliver(world, instance)
    await world.made("/v1/system/master-keys/actions/rotate", token=ADMIN)
    await Rewrapper(world.control, world.sealer).step()
    await deliver(world, instance)
    await world.made("/v1/secrets", {"name": "B", "value": THIRD})
    assert (await world.call("DELETE", "/v1/secrets/B")).status == 204
    await relay(world.control)
    return instance


async def mistakes(world: World) -> None:
    """Requests with a value in the wrong place."""
    for path, body in (
        ("/v1/secrets", {"name": "A", "value": THIRD}),
        ("/v1/secrets", {"name": "1", "value": THIRD}),
        ("/v1/secrets", {"name": "B", "value": [THIRD]}),
        ("/v1/secrets", {"name": "B", "vaule": THIRD}),
        ("/v1/secrets", {"name": "B", "value": THIRD + "\0"}),
        ("/v1/secrets", {"name": "B", "value": THIRD * 9999}),
        ("/v1/secrets/none/versions", {"value": THIRD}),
        ("/v1/secrets/A/versions", {"value": THIRD, "expires_at": "soon"}),
    ):
        answer = await world.post(path, body)
        assert 400 <= answer.status < 500
        assert not found(answer.content), path
    refused = await world.post("/v1/secrets", raw=b'{"name": "B", "value": "' + THIRD.encode())
    assert (refused.status, found(refused.content)) == (400, [])
    world.kms.available = False
    refused = await world.post("/v1/secrets", {"name": "B", "value": THIRD})
    assert (refused.status, found(refused.content)) == (503, [])
    world.kms.available = True


async def deliver(world: World, instance: Instance) -> None:
    request = SecretsRequest(node_id=instance.node_id, epoch=1, instance_id=instance.id)
    told = await Delivery(world.control, world.sealer).values(request)
    assert told.values["A"].reveal_text() == SECOND
    assert not found(repr(told).encode())
    with pytest.raises(ShellWeGoError) as refused:
        await Delivery(world.control, world.sealer).values(
            SecretsRequest(node_id=instance.node_id, epoch=1, instance_id="ins_none")
        )
    assert not found(repr(refused.value).encode())


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_no_file_of_the_database_holds_a_value_or_a_token(world: World, tmp_path: Path) -> None:
    await use_secrets(world)
    written = files(tmp_path)
    assert {"state.db", "state.db-wal"} <= written.keys()
    assert any(PLAIN.encode() in content for content in written.values()), "the search finds what is there"
    assert {
        name: found(content, VALUES + TOKENS) for name, content in written.items() if found(content, VALUES + TOKENS)
    } == {}


async def test_no_get_of_the_api_shows_one(world: World) -> None:
    instance = await use_secrets(world)
    asked = 0
    for path in await paths(world, instance):
        for token in (ADMIN, OWNER):
            answer = await world.get(path, token=token, query={"limit": "100"} if path in LISTS else None)
            if answer.status not in (400, 404):
                asked += 1
            assert not found(answer.content, VALUES + TOKENS), path
    assert asked > len(LISTS)


STREAMS = ("stream", "/logs", "/metrics", "/wait", "openapi")
LISTS = ("/v1/secrets", "/v1/secrets/A/versions", "/v1/events", "/v1/audit", "/v1/apps", "/v1/apps/shop/releases")


async def paths(world: World, instance: Instance) -> list[str]:
    """Every GET of the document, on things that are there."""
    deployment = (await world.get("/v1/apps/shop/deployments")).json["data"][0]["id"]
    things = {
        "app": "shop",
        "secret": "A",
        "number": "1",
        "release": "v2",
        "deployment": deployment,
        "instance": instance.id,
        "node": "one",
        "project": world.project.id,
        "organization": world.project.organization_id,
    }
    known = [path for path, operations in DOCUMENT["paths"].items() if "get" in operations]
    filled = []
    for path in known:
        if not any(word in path for word in STREAMS):
            filled.append(re.sub(r"{(\w+)}", lambda match: things.get(match[1], "none"), path))
    return filled


async def test_no_assignment_and_no_log_line_holds_one(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    instance = await use_secrets(world)
    told = await world.control.read(lambda tx: assignments(tx, instance.node_id))
    assert not found(repr(told).encode())
    logged: Any = capsys.readouterr()
    assert not found((logged.out + logged.err).encode(), VALUES + TOKENS)
