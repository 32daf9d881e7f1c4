"""Images and nodes of the platform by the engine's services; health, and the schema by reflection alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from plasmavmc.backends import Readiness
from plasmavmc.errors import ConflictError, NotFoundError, UnauthenticatedError, UnavailableError
from plasmavmc.rpc.api import Image, ImageOrder, Scheduling, Upload
from plasmavmc.rpc.client import ClientTls, connect
from plasmavmc.types import Scope
from shellwego.api.server import Tls
from shellwego.core import nodes
from tests.api.api_world import ADMIN, GIB, OWNER
from tests.api_grpc.grpc_world import GrpcWorld, refusal, served
from tests.rpc.test_rpc_schema import SERVICES, Reflection
from tests.rpc.test_rpc_transport import Authority


async def test_images_are_had_by_name_and_digest_and_deleted_while_nobody_needs_them(world: GrpcWorld) -> None:
    await world.deployed()
    async with world.client() as client:
        (image,) = [each async for each in client.images.list_images()]
        assert image.names == ("registry.example/hello:v1",)
        assert image.scope == Scope(world.api.project.organization_id, world.api.project.id)
        assert (image.kind, image.labels["state"]) == (None, "ready")
        assert await client.images.get(image.digest) == await client.images.get(image.names[0]) == image
        with pytest.raises(ConflictError, match="needs the image"):
            await client.images.delete(image.digest)
        world.api.images.publish("registry.example/spare:v1")
        *_, spare = [
            each async for each in client.images.register(ImageOrder(Scope("", ""), "registry.example/spare:v1"))
        ]
        assert isinstance(spare, Image)
        assert len([each async for each in client.images.list_images(page_size=1)]) == 2
        await client.images.delete(spare.names[0])
        with pytest.raises(NotFoundError):
            await client.images.get(spare.digest)
        with pytest.raises(NotFoundError):
            await client.images.delete(spare.digest)
        with pytest.raises(ConflictError, match="uploads"):
            assert [each async for each in client.images.register(ImageOrder(Scope("", ""), Upload.TAR))]


async def test_nodes_are_told_and_cordoned(world: GrpcWorld) -> None:
    instance = await world.deployed()
    async with world.client(ADMIN) as client:
        node = await client.nodes.get()
        assert (node.id, node.name, node.scheduling) == (world.api.node.id, "one", Scheduling.OPEN)
        assert (node.capacity.memory_bytes, node.promised.memory_bytes) == (8 * GIB, instance.memory_bytes)
        assert [(each.name, each.readiness) for each in node.backends] == [("kvm", Readiness.READY)]
        watching = client.nodes.watch()
        assert (await anext(watching)).scheduling is Scheduling.OPEN
        assert (await client.nodes.cordon(node.id)).scheduling is Scheduling.CORDONED
        assert (await anext(watching)).scheduling is Scheduling.CORDONED
        stored = await world.api.control.read(lambda tx: tx.nodes.get(node.id))
        assert stored is not None
        assert stored.scheduling is nodes.Scheduling.CORDONED
        assert (await client.nodes.uncordon(node.id)).scheduling is Scheduling.OPEN
        await watching.aclose()
        assert [each.id async for each in client.nodes.list_nodes()] == [node.id]
        assert (await client.nodes.drain(node.id, deadline_s=1)).scheduling is Scheduling.DRAINING
        with pytest.raises(NotFoundError):
            await client.nodes.get(f"node_{'0' * 26}")
    events = await world.api.control.read(lambda tx: [each.type for each in tx.events.select()])
    assert [each for each in events if each.startswith("node.")] == [
        "node.cordoned",
        "node.uncordoned",
        "node.draining",
    ]


async def test_everything_can_be_found_by_reflection_and_all_of_it_is_served(world: GrpcWorld) -> None:
    async with grpc.aio.insecure_channel(world.address) as channel:
        reflection = Reflection(channel)
        assert await reflection.services() >= SERVICES | {"grpc.health.v1.Health"}
        for name in sorted(SERVICES):
            for method in (await reflection.service(name)).methods:
                assert await refusal(channel, method) == "UNAUTHENTICATED", method.full_name
        stub = cast("Any", HealthStub(channel))
        for name in ("", *SERVICES):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_over_tls_the_servers_certificate_is_its_own_and_a_token_says_who_calls(
    world: GrpcWorld, tmp_path: Path
) -> None:
    authority, stranger = (Authority(tmp_path, name).make() for name in ("authority", "stranger"))
    certificate, key = authority.issue("server", "/CN=server")
    async with served(world.api, Tls(certificate, key)) as (_, address):
        known = ClientTls(None, None, authority.certificate)
        async with connect(address, token=OWNER, tls=known) as client:
            assert [vm async for vm in client.vms.list_vms()] == []
        async with connect(address, tls=known) as client:
            with pytest.raises(UnauthenticatedError):
                await client.vms.get("ins_x")
        with pytest.raises(UnavailableError):
            async with connect(address, token=OWNER, tls=ClientTls(None, None, stranger.certificate), timeout_s=3):
                pass
        with pytest.raises(UnavailableError):
            async with connect(address, token=OWNER, timeout_s=3):
                pass
