"""Secrets on their way to a VM: asked for just before it starts, held in memory, waited for where they cannot be had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shellwego.core.errors import ConflictError, ShellWeGoError, ThrottledError, UnavailableError
from shellwego.drivers.uplink.memory import LinkState
from tests.agent.agent_world import World, workload, world

WORK = workload("serve", secrets=("DB_URL",))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as one:
        one.control.secrets_of["ins_1"] = {"DB_URL": "correct-horse"}
        yield one


async def seen(node: World) -> str:
    return node.engine.environment(await node.vm_id())["DB_URL"]


async def test_a_vm_has_its_secrets(node: World) -> None:
    await node.control.assign("ins_1", WORK)
    await node.clock.until(node.control.is_("healthy"))
    assert await seen(node) == "correct-horse"


async def test_a_vm_without_secrets_asks_for_none(node: World) -> None:
    await node.control.assign("ins_1", workload("serve"))
    await node.clock.until(node.control.is_("healthy"))
    assert node.control.handed == 0


@pytest.mark.parametrize(
    "refusal",
    [
        UnavailableError("kms-unavailable", "the KMS does not answer"),
        ThrottledError("uplink-too-often", "more than 1200 calls in a minute", resolution="Wait.", retry_after_s=1),
    ],
)
async def test_while_they_cannot_be_had_it_waits_and_spends_no_attempt(node: World, refusal: ShellWeGoError) -> None:
    node.control.refusal = refusal
    await node.control.assign("ins_1", WORK)
    await node.clock.advance(120)
    told = node.control.observed["ins_1"]
    assert (told.phase.value, told.reason_code, told.ends) == ("starting", refusal.code, 0)
    node.control.refusal = None
    await node.clock.until(node.control.is_("healthy"))
    assert await node.vms() == {"ins_1": (1, "running")}


async def test_what_can_never_be_had_fails_the_instance(node: World) -> None:
    node.control.refusal = ConflictError("secret-gone", "version 1 of the secret DB_URL is gone")
    await node.control.assign("ins_1", WORK)
    await node.clock.until(node.control.is_("failed"))
    assert node.control.observed["ins_1"].reason_code == "secret-gone"


async def test_another_attempt_begins_while_the_control_plane_is_away(node: World) -> None:
    await node.control.assign("ins_1", WORK)
    await node.clock.until(node.control.is_("healthy"))
    node.link.state = LinkState.CUT
    await node.engine.stop(await node.vm_id(), 0)
    for _ in range(200):
        await node.clock.advance(0.1)
        if (await node.vms())["ins_1"] == (2, "running"):
            break
    assert await node.vms() == {"ins_1": (2, "running")}
    assert await seen(node) == "correct-horse"


async def test_another_attempt_asks_again(node: World) -> None:
    await node.control.assign("ins_1", WORK)
    await node.clock.until(node.control.is_("healthy"))
    await node.engine.stop(await node.vm_id(), 0)
    await node.clock.until(lambda: node.control.handed == 2)


async def test_nothing_of_them_is_on_the_nodes_disk_or_in_its_reports(node: World, tmp_path: Path) -> None:
    await node.control.assign("ins_1", WORK)
    await node.clock.until(node.control.is_("healthy"))
    assert "correct-horse" not in repr(node.control.reports)
    assert not holding(tmp_path, b"correct-horse")


def holding(directory: Path, what: bytes) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and what in path.read_bytes()]
