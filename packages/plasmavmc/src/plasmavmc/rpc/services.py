"""All services of one server, joined: ours, health and reflection. Every listener offers the same."""

from __future__ import annotations

from types import TracebackType
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from plasmavmc.rpc.api import ImageApi, NodeApi, VmApi
from plasmavmc.rpc.health import Health
from plasmavmc.rpc.idempotency import Answers
from plasmavmc.rpc.identifiers import ChooseId, choose_id
from plasmavmc.rpc.images import ImageServicer
from plasmavmc.rpc.nodes import NodeServicer
from plasmavmc.rpc.v1 import image_pb2, image_pb2_grpc, node_pb2, node_pb2_grpc, vm_pb2, vm_pb2_grpc
from plasmavmc.rpc.vms import VmServicer

VM_SERVICE = vm_pb2.DESCRIPTOR.services_by_name["VmService"].full_name
IMAGE_SERVICE = image_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name
NODE_SERVICE = node_pb2.DESCRIPTOR.services_by_name["NodeService"].full_name
OVERALL = ""


class Services:
    """An async context manager: within it, health says that we serve; `VmService` only once VMs can be made. `choose`
    gives a VM its id where the request gives none."""

    def __init__(self, vms: VmApi, images: ImageApi, nodes: NodeApi, *, choose: ChooseId = choose_id) -> None:
        self._answers = Answers()
        self._vm_servicer = VmServicer(vms, self._answers, choose)
        self._image_servicer = ImageServicer(images, self._answers)
        self._node_servicer = NodeServicer(nodes, self._answers)
        self._health = Health()

    def enter(self, server: grpc.aio.Server) -> None:
        """Offer all services on a server."""
        vm_pb2_grpc.add_VmServiceServicer_to_server(self._vm_servicer, server)
        image_pb2_grpc.add_ImageServiceServicer_to_server(self._image_servicer, server)
        node_pb2_grpc.add_NodeServiceServicer_to_server(self._node_servicer, server)
        cast("Any", health_pb2_grpc).add_HealthServicer_to_server(self._health, server)
        names = (VM_SERVICE, IMAGE_SERVICE, NODE_SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        cast("Any", reflection).enable_server_reflection(names, server)

    async def tell_ready(self, *, ready: bool) -> None:
        """Health says from now on whether VMs can be made."""
        self._health.tell(VM_SERVICE, serving=ready)

    async def tell_end(self) -> None:
        """Health says from now on that we do not serve any more."""
        self._health.end()

    async def __aenter__(self) -> Services:
        self._health.tell(VM_SERVICE, serving=False)
        for service in (OVERALL, IMAGE_SERVICE, NODE_SERVICE):
            self._health.tell(service, serving=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._answers.close()
