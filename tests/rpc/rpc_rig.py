"""A real gRPC server on a unix socket over an engine on memory parts, and clients of several principals."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from plasmavmc.backends import GuestKind
from plasmavmc.images.blobs import BlobStore
from plasmavmc.images.policy import RegistryPolicy
from plasmavmc.manager import VmManager
from plasmavmc.rpc.api import Image
from plasmavmc.rpc.client import EngineClient, connect
from plasmavmc.rpc.gate import Gate
from plasmavmc.rpc.watch import KEPT_CHANGES
from plasmavmc.server.authorizer import PolicyAuthorizer, PolicyFile
from plasmavmc.server.catalogue import Catalogue
from plasmavmc.server.engine import EngineVms
from plasmavmc.server.identity import by_socket
from plasmavmc.server.images import EngineImages
from plasmavmc.server.node import EngineNode, NodeSite
from plasmavmc.server.services import EngineServices
from plasmavmc.server.transport import ROOT_UID, listen_unix
from plasmavmc.types import SYSTEM_SCOPE, Scope, VmSpec
from tests.engine.engine_rig import EngineRig

T = TypeVar("T")
ACME = Scope("acme", "web")
OTHER = Scope("other", "shop")
TOKENS = {
    "operator": "operator-token",
    "viewer": "viewer-token",
    "stranger": "stranger-token",
    "nobody": "nobody-token",
}


def policy_text() -> str:
    """`operator` and `viewer` of acme/web, `stranger` is operator of other/shop, `nobody` is known and has nothing."""
    grants = {
        "operator": '[{ role = "operator", org = "acme", project = "web" }]',
        "viewer": '[{ role = "viewer", org = "acme", project = "web" }]',
        "stranger": '[{ role = "operator", org = "other", project = "shop" }]',
        "nobody": "[]",
    }
    people = "\n".join(
        f'[[principals]]\nname = "{name}"\ntoken_sha256 = "{hashlib.sha256(TOKENS[name].encode()).hexdigest()}"\n'
        f"grants = {grants[name]}\n"
        for name in TOKENS
    )
    root = '[[principals]]\nname = "root"\nunix_uid = 0\ngrants = [{ role = "admin" }]\n'
    return people + root


@dataclass
class RpcRig:
    """What a test of the services needs. Made by `running`."""

    engine: EngineRig
    manager: VmManager
    vms: EngineVms
    images: EngineImages
    node: EngineNode
    catalogue: Catalogue
    services: EngineServices
    policy: PolicyFile
    policy_path: Path
    socket: Path
    server: grpc.aio.Server

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    @asynccontextmanager
    async def client(self, who: str = "") -> AsyncIterator[EngineClient]:
        """A client with the token of a principal; without one it is root by the socket."""
        async with connect(self.address, token=TOKENS.get(who, who)) as client:
            yield client

    def spec(self, name: str = "one", scope: Scope = ACME, command: Sequence[str] = ("serve",)) -> VmSpec:
        """Something to run, from the image that all may use."""
        made = self.engine.spec(name, *command)
        return VmSpec(
            id=made.id,
            scope=scope,
            name=name,
            image=made.image,
            command=made.command,
            env=made.env,
            resources=made.resources,
            networks=made.networks,
        )


def system_image(rig: EngineRig, scope: Scope = SYSTEM_SCOPE, *names: str) -> Image:
    """The rig's sample as the catalogue has it."""
    return Image(scope, rig.sample.digest, names, GuestKind.LINUX, 4096, 1.0, entrypoint=("/app",))


@asynccontextmanager
async def running(
    *,
    engine: EngineRig | None = None,
    uid: int = ROOT_UID,
    registries: tuple[str, ...] = ("127.0.0.1:*",),
    kept_changes: int = KEPT_CHANGES,
) -> AsyncIterator[RpcRig]:
    """A server; nothing of it is left afterwards. A second one over the same engine is the server after a restart."""
    directory = Path(tempfile.mkdtemp(prefix="rpc-"))
    if engine is None:
        (directory / "engine").mkdir()
        engine = EngineRig(directory / "engine")
    try:
        manager = engine.manager()
        await manager.recover()
        catalogue = Catalogue(engine.directory / "images.json")
        if not catalogue.digests():
            catalogue.add(system_image(engine), "sample:latest")
        site = NodeSite(
            id="node_test",
            name="test",
            version="1",
            state_file=engine.directory / "node.json",
            disk_dir=engine.directory,
            max_vms=4093,
            kernel="own-9.9.1-1-0123456789ab",
        )
        node = EngineNode(site, manager, engine.parts.registry)
        images = EngineImages(
            engine.parts.images,
            BlobStore(engine.directory / "blobs", grace_s=0),
            catalogue,
            vms=manager.list_vms,
            policy=RegistryPolicy(registries),
        )
        vms = EngineVms(manager, catalogue, node, kept_changes=kept_changes)
        services = EngineServices(vms, images, node)
        policy_path = directory / "policy.toml"
        policy_path.write_text(policy_text())
        policy = PolicyFile(policy_path)
        socket = directory / "s.sock"
        server = listen_unix(socket, uid, Gate(by_socket(policy, uid), PolicyAuthorizer(policy)), services.enter)
        follower = asyncio.create_task(services.follow())
        async with services:
            await services.settled(engine.parts.registry)
            await server.start()
            try:
                yield RpcRig(
                    engine, manager, vms, images, node, catalogue, services, policy, policy_path, socket, server
                )
            finally:
                await services.tell_end()
                await server.stop(0)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await manager.close(keep_vms=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
