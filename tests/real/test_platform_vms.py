"""A running platform's VMs: by the engine's services, all of it by a token; and asleep, through a crash of the platform."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import subprocess
import tarfile
import tomllib
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import grpc
import pytest

from examples.demo.images import hello
from examples.demo.platform import SWG, Platform
from examples.demo.registry import free_port
from plasmavmc.errors import ConflictError, UnauthenticatedError
from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.rpc.api import Scheduling, VmFilter
from plasmavmc.rpc.client import EngineClient, connect
from plasmavmc.states import ENDED, VmState
from plasmavmc.types import CopyTarget, ExecSpec, LogStream, Scope, VmSpec
from tests.api_grpc.grpc_world import refusal
from tests.real.platform_harness import (
    PATIENCE_S,
    api,
    fetch,
    instances,
    kill_platform,
    qemu_processes,
    scratch_platform,
    until,
)
from tests.rpc.test_rpc_schema import SERVICES, Reflection

pytestmark = pytest.mark.real
APP = "shop"
PORT = free_port()
ADDRESS = f"127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with scratch_platform("--grpc-port", str(PORT)) as made:
        made.swg("images", "load", "hello:v1", str(hello("v1")))
        made.swg("apps", "create", APP)
        made.swg("deploy", "-a", APP, "-i", "hello:v1", "--port", "8080")
        yield made


def token(platform: Platform) -> str:
    config = tomllib.loads((platform.config_home / "shellwego" / "config.toml").read_text())
    return str(config["contexts"][config["current"]]["token"])


async def test_the_engines_services_reach_the_platforms_vms_and_node(platform: Platform) -> None:
    (shown,) = api(platform, f"apps/{APP}/instances?filter[phase]=healthy")["data"]
    async with connect(ADDRESS, token=token(platform)) as client:
        (vm,) = [each async for each in client.vms.list_vms(VmFilter(states=frozenset({VmState.RUNNING})))]
        assert (vm.spec.id, vm.spec.labels["vm"]) == (shown["id"], shown["vm_id"])
        assert vm.status.endpoints == (f"tcp:{shown['address']}",)
        assert vm.status.private_address == shown["private_address"]
        assert IPv6Address(shown["private_address"]) in IPv6Network("fd00::/8")
        session = await client.vms.exec(vm.spec.id, ExecSpec(command=("/bin/sh", "-c", "cat; exit 7")))
        await session.send(b"through and back")
        await session.send_eof()
        items = [item async for item in session.output()]
        assert items == [ExecOutput(LogStream.STDOUT, b"through and back"), ExecExit(7)]
        with pytest.raises(ConflictError, match="planner"):
            await client.vms.stop(vm.spec.id)
        await client.vms.copy_in(vm.spec.id, CopyTarget("/srv", "note"), archive(b"carried"))
        pieces = [piece async for piece in client.vms.copy_out(vm.spec.id, "/srv/note") if isinstance(piece, bytes)]
        with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as copied:
            (member,) = copied.getmembers()
            content = copied.extractfile(member)
            assert content is not None
            assert content.read() == b"carried"
        await one_off(client, vm.spec.scope)
        node = await client.nodes.cordon()
        assert (node.scheduling, node.labels["health"]) == (Scheduling.CORDONED, "ready")
        assert (await client.nodes.uncordon(node.id)).scheduling is Scheduling.OPEN
        (image,) = [each async for each in client.images.list_images()]
        assert image.digest == vm.spec.image
    async with connect(ADDRESS, token=f"pat_{'x' * 43}") as stranger:
        with pytest.raises(UnauthenticatedError):
            await stranger.vms.get(vm.spec.id)


async def archive(content: bytes) -> AsyncIterator[bytes]:
    """A tar stream of one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("note")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    yield buffer.getvalue()


def test_the_engines_own_commands_speak_to_the_platform(platform: Platform) -> None:
    command = [str(Path(SWG).with_name("plasmavmc")), "--server", ADDRESS, "vm", "ls", "-o", "json"]
    environment = {**os.environ, "PLASMAVMC_TOKEN": token(platform)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    (instance,) = instances(platform, APP)
    assert instance["id"] in ended.stdout


async def one_off(client: EngineClient, scope: Scope) -> None:
    """A VM is made, watched to its end, its output read, and removed."""
    command = ("/bin/echo", "once")
    spec = VmSpec("", scope, "", "hello:v1", command=command, labels={"app": APP})
    made = await client.vms.create(spec, start=True)
    async with asyncio.timeout(PATIENCE_S):
        async for event in client.vms.watch(VmFilter(labels={"owner": "run"})):
            if event.vm is not None and event.vm.status.state in ENDED:
                break
    ended = await client.vms.get(made.spec.id)
    assert (ended.status.state, ended.status.exit_code) == (VmState.STOPPED, 0), ended.status
    assert [line.text async for line in client.vms.logs(made.spec.id)] == ["once"]
    await client.vms.delete(made.spec.id)
    assert [each async for each in client.vms.list_vms(VmFilter(labels={"owner": "run"}))] == []


async def test_all_of_it_is_found_by_reflection_and_nothing_answers_without_a_token(platform: Platform) -> None:
    async with grpc.aio.insecure_channel(ADDRESS) as channel:
        reflection = Reflection(channel)
        assert await reflection.services() >= SERVICES | {"grpc.health.v1.Health"}
        for name in sorted(SERVICES):
            for method in (await reflection.service(name)).methods:
                assert await refusal(channel, method) == "UNAUTHENTICATED", method.full_name


def test_memory_of_a_suspended_instance_outlives_a_crash_of_the_platform(platform: Platform) -> None:
    (before,) = instances(platform, APP)
    note(platform, "before")

    shown = platform.json("vms", "suspend", before["id"])
    assert (shown["phase"], shown["sleep"]) == ("asleep", "asleep")
    assert qemu_processes(platform.key) == {}, "what sleeps has no process"
    assert api(platform, f"apps/{APP}")["state"] == "sleeping"
    until(lambda: page(platform) == (503, "app-asleep"), "the edge says that the app sleeps")
    refused = platform.swg("exec", "-a", APP, "--instance", before["id"], "--", "true", code=None)
    assert "Resume it first." in refused

    kill_platform(platform)
    platform.start()
    until(lambda: api(platform, "nodes")["data"][0]["health"] == "ready", "the node is back")
    assert page(platform) == (503, "app-asleep")
    assert phase(platform) == "asleep"

    shown = platform.json("vms", "resume", before["id"])
    assert (shown["phase"], shown["sleep"]) == ("healthy", "awake")
    until(lambda: fetch(platform, APP)[0] == 200, "the app answers again")
    (after,) = instances(platform, APP)
    same = [after[key] for key in ("id", "vm_id", "attempt")] == [before[key] for key in ("id", "vm_id", "attempt")]
    assert same, platform.log.read_text()[-8000:]
    note(platform, "after")
    assert json.loads(fetch(platform, APP, "/journal")[1]) == ["before", "after"]

    platform.swg("vms", "suspend", before["id"])
    platform.swg("apps", "stop", APP)
    assert instances(platform, APP) == []


def note(platform: Platform, serial: str) -> None:
    """Have the app keep a word, in memory alone."""
    connection = http.client.HTTPConnection("127.0.0.1", platform.http_port, timeout=30)
    try:
        connection.request("POST", "/journal", body=serial, headers={"Host": f"{APP}.localhost"})
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def page(platform: Platform) -> tuple[int, str | None]:
    """The status of a request, and which of the edge's own pages it was."""
    connection = http.client.HTTPConnection("127.0.0.1", platform.http_port, timeout=30)
    try:
        connection.request("GET", "/", headers={"Host": f"{APP}.localhost"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("X-ShellWeGo-Error")
    finally:
        connection.close()


def phase(platform: Platform) -> str:
    (instance,) = instances(platform, APP)
    return str(instance["phase"])
