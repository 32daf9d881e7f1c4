"""Which action each method of the services is. A method without one is an error at import: it could be called by anybody.

`SEEN_BY` says which action lets a principal see the things of another action: whoever lacks it hears NOT_FOUND.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from plasmavmc.rpc.access import Action
from plasmavmc.rpc.v1 import image_pb2, node_pb2, vm_pb2

ACTIONS: Mapping[str, Action] = {
    "/plasmavmc.v1.VmService/CreateVm": Action.VM_CREATE,
    "/plasmavmc.v1.VmService/StartVm": Action.VM_START,
    "/plasmavmc.v1.VmService/StopVm": Action.VM_STOP,
    "/plasmavmc.v1.VmService/RestartVm": Action.VM_RESTART,
    "/plasmavmc.v1.VmService/SuspendVm": Action.VM_SUSPEND,
    "/plasmavmc.v1.VmService/ResumeVm": Action.VM_RESUME,
    "/plasmavmc.v1.VmService/RestrictVm": Action.VM_RESTRICT,
    "/plasmavmc.v1.VmService/ScreenVm": Action.VM_SCREEN,
    "/plasmavmc.v1.VmService/ForkVm": Action.VM_FORK,
    "/plasmavmc.v1.VmService/DeleteVm": Action.VM_DELETE,
    "/plasmavmc.v1.VmService/GetVm": Action.VM_READ,
    "/plasmavmc.v1.VmService/ListVms": Action.VM_READ,
    "/plasmavmc.v1.VmService/WatchVms": Action.VM_READ,
    "/plasmavmc.v1.VmService/ExecVm": Action.VM_EXEC,
    "/plasmavmc.v1.VmService/AttachVm": Action.VM_EXEC,
    "/plasmavmc.v1.VmService/CopyIntoVm": Action.VM_EXEC,
    "/plasmavmc.v1.VmService/CopyFromVm": Action.VM_EXEC,
    "/plasmavmc.v1.VmService/StreamLogs": Action.VM_LOGS,
    "/plasmavmc.v1.ImageService/RegisterImage": Action.IMAGE_REGISTER,
    "/plasmavmc.v1.ImageService/GetImage": Action.IMAGE_READ,
    "/plasmavmc.v1.ImageService/ListImages": Action.IMAGE_READ,
    "/plasmavmc.v1.ImageService/DeleteImage": Action.IMAGE_DELETE,
    "/plasmavmc.v1.NodeService/GetNode": Action.NODE_READ,
    "/plasmavmc.v1.NodeService/ListNodes": Action.NODE_READ,
    "/plasmavmc.v1.NodeService/WatchNodes": Action.NODE_READ,
    "/plasmavmc.v1.NodeService/CordonNode": Action.NODE_CORDON,
    "/plasmavmc.v1.NodeService/UncordonNode": Action.NODE_CORDON,
    "/plasmavmc.v1.NodeService/DrainNode": Action.NODE_DRAIN,
}

SEEN_BY: Mapping[str, Action] = {"vm": Action.VM_READ, "image": Action.IMAGE_READ, "node": Action.NODE_READ}

OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.")
"""For everybody who can connect: whether it lives, and the schema, which is public."""


def seeing(action: Action) -> Action:
    """The action that lets a principal see what `action` is done to."""
    return SEEN_BY[action.value.partition(":")[0]]


def methods() -> Iterator[str]:
    """The full names of all methods of our services, from their descriptors."""
    for schema in (vm_pb2, image_pb2, node_pb2):
        for service in schema.DESCRIPTOR.services_by_name.values():
            yield from (f"/{service.full_name}/{method.name}" for method in service.methods)


def check_table(table: Mapping[str, Action]) -> None:
    """Refuse a table that does not name exactly the methods there are.

    Raises:
        LookupError: with those that are missing or unknown.
    """
    known = frozenset(methods())
    if known != table.keys():
        raise LookupError(f"methods without an action, or unknown: {sorted(known ^ table.keys())}")


check_table(ACTIONS)
