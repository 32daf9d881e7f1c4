"""What is foreign looks absent: every method of the schema, aimed at what is one's own, another's, and nobody's.

The matrix is made from the descriptors, so a method that comes later is in it; one that cannot be aimed fails the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from plasmavmc.rpc.access import Action
from plasmavmc.rpc.actions import ACTIONS, check_table, seeing
from plasmavmc.rpc.v1 import image_pb2, node_pb2, vm_pb2
from plasmavmc.server.policy import ROLES
from plasmavmc.types import Scope
from tests.rpc.rpc_rig import ACME, OTHER, TOKENS, RpcRig, system_image

OWN, FOREIGN, ABSENT = "ours", "theirs", "absent"
SCOPES = {OWN: ACME, FOREIGN: OTHER, ABSENT: Scope("absent", "absent")}
NODES = {OWN: "node_test", FOREIGN: "node_test", ABSENT: "node_absent"}
ANSWERED = "OK"
WAITING = "waits"
"""A stream that is open and has nothing to tell."""


def methods() -> Iterator[MethodDescriptor]:
    for schema in (vm_pb2, image_pb2, node_pb2):
        for service in schema.DESCRIPTOR.services_by_name.values():
            yield from service.methods


METHODS = {f"/{method.containing_service.full_name}/{method.name}": method for method in methods()}


def aim(method: MethodDescriptor, target: str) -> Message:
    """A request of a method, aimed at a VM, image, scope or node."""
    request: Any = GetMessageClass(method.input_type)()
    _aim_at(request.start if "start" in _messages(request) else request, target)
    return request


def _messages(request: Any) -> set[str]:
    return {each.name for each in request.DESCRIPTOR.fields if each.message_type is not None}


def _aim_at(part: Any, target: str) -> None:
    """Set whatever field names a thing; a request that names none must be one that lists."""
    names = {each.name for each in part.DESCRIPTOR.fields}
    scope = SCOPES[target]
    aimed = False
    if "vm_id" in names:
        part.vm_id, aimed = f"vm_{target}", True
    if "command" in names:
        part.command.append("exit")
    if "copies" in names:
        part.copies.add()
    if "spec" in names:
        part.spec.image, part.spec.name = "sample", "made"
        part.spec.scope.org, part.spec.scope.project = scope.org, scope.project
        aimed = True
    if "scope" in names:
        part.scope.org, part.scope.project = scope.org, scope.project
        aimed = True
    if "image" in names:
        part.image = f"image-{target}"
    if "reference" in names:
        part.tar_upload = True
    if "filter" in names:
        part.filter.scope.org, part.filter.scope.project = scope.org, scope.project
        aimed = True
    if "node_id" in names:
        part.node_id, aimed = NODES[target], True
    assert aimed or part.DESCRIPTOR.name in ("ListNodesRequest", "WatchNodesRequest"), part.DESCRIPTOR.name


@dataclass(frozen=True)
class Heard:
    code: str
    words: str = ""
    answer: Message | None = None


async def call(channel: grpc.aio.Channel, path: str, request: Message, who: str) -> Heard:
    """The first answer to a request; names of targets are blotted out of what is said."""
    method = METHODS[path]
    decode = GetMessageClass(method.output_type).FromString
    kind = "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
    remote = getattr(channel, kind)(
        path, request_serializer=lambda each: each.SerializeToString(), response_deserializer=decode
    )
    metadata = (("authorization", f"Bearer {TOKENS[who]}"),)
    try:
        async with asyncio.timeout(4.0):
            if not method.server_streaming:
                return Heard(ANSWERED, answer=await remote(request, metadata=metadata))
            stream = remote(metadata=metadata) if method.client_streaming else remote(request, metadata=metadata)
            if method.client_streaming:
                await stream.write(request)
                await stream.done_writing()
            answer = await stream.read()
            stream.cancel()
            return Heard(ANSWERED, answer=None if answer is grpc.aio.EOF else answer)
    except TimeoutError:
        return Heard(WAITING)
    except grpc.aio.AioRpcError as error:
        words = str(error.details())
        for name in (*(f"{scope.org}/{scope.project}" for scope in SCOPES.values()), *NODES.values(), *SCOPES):
            words = words.replace(name, "X")
        return Heard(error.code().name, words)


async def furnish(rig: RpcRig) -> None:
    """A VM and an image in each of two projects."""
    async with rig.client() as root:
        for target in (OWN, FOREIGN):
            await root.vms.create(rig.spec(target, SCOPES[target]))
            rig.catalogue.add(system_image(rig.engine, SCOPES[target]), f"image-{target}:latest")


def test_every_method_has_an_action_and_a_missing_one_is_an_error() -> None:
    assert ACTIONS.keys() == METHODS.keys()
    for path in METHODS:
        with pytest.raises(LookupError, match=path.rpartition("/")[2]):
            check_table({known: action for known, action in ACTIONS.items() if known != path})
    with pytest.raises(LookupError):
        check_table({**ACTIONS, "/plasmavmc.v1.VmService/NoSuch": Action.VM_READ})


@pytest.mark.parametrize("path", METHODS)
async def test_the_foreign_is_as_the_absent(rig: RpcRig, path: str) -> None:
    await furnish(rig)
    before = rig.manager.list_vms(), list(rig.catalogue.all()), await rig.node.get_node("")
    async with grpc.aio.insecure_channel(rig.address) as channel:
        foreign = await call(channel, path, aim(METHODS[path], FOREIGN), "operator")
        absent = await call(channel, path, aim(METHODS[path], ABSENT), "operator")
        nobodys = await call(channel, path, aim(METHODS[path], OWN), "nobody")
    assert foreign == absent, "whoever may not see a thing cannot tell that it exists"
    assert nobodys == absent, "who has no grant sees nothing at all"
    if foreign.code not in (ANSWERED, WAITING):
        assert foreign.code == "NOT_FOUND"
    assert before == (rig.manager.list_vms(), list(rig.catalogue.all()), await rig.node.get_node(""))


NODE_METHODS = {path for path, action in ACTIONS.items() if action.value.startswith("node:")}


@pytest.mark.parametrize("path", sorted(METHODS.keys() - NODE_METHODS))
async def test_ones_own_is_within_reach_of_an_operator(rig: RpcRig, path: str) -> None:
    await furnish(rig)
    async with grpc.aio.insecure_channel(rig.address) as channel:
        own = await call(channel, path, aim(METHODS[path], OWN), "operator")
    assert own.code not in ("NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"), own


@pytest.mark.parametrize("path", sorted(METHODS.keys() - NODE_METHODS))
async def test_a_viewer_is_told_that_it_may_not_and_nothing_happens(rig: RpcRig, path: str) -> None:
    await furnish(rig)
    before = rig.manager.list_vms(), list(rig.catalogue.all())
    async with grpc.aio.insecure_channel(rig.address) as channel:
        own = await call(channel, path, aim(METHODS[path], OWN), "viewer")
    assert (own.code == "PERMISSION_DENIED") == (ACTIONS[path] not in ROLES["viewer"]), own
    assert before == (rig.manager.list_vms(), list(rig.catalogue.all()))


@pytest.mark.parametrize("path", sorted(METHODS))
async def test_nobody_gets_through_without_being_known(rig: RpcRig, path: str) -> None:
    await furnish(rig)
    rig.policy_path.write_text("principals = []\n")
    rig.policy.reload()
    async with grpc.aio.insecure_channel(rig.address) as channel:
        assert (await call(channel, path, aim(METHODS[path], OWN), "operator")).code == "UNAUTHENTICATED"


STREAMED = sorted(path for path, method in METHODS.items() if method.client_streaming)


def opened(channel: grpc.aio.Channel, path: str, who: str) -> grpc.aio.StreamStreamCall[Any, Any]:
    """A stream of requests, of which none is sent yet."""
    decode = GetMessageClass(METHODS[path].output_type).FromString
    remote = channel.stream_stream(
        path, request_serializer=lambda each: each.SerializeToString(), response_deserializer=decode
    )
    return remote(metadata=(("authorization", f"Bearer {TOKENS[who]}"),))


@pytest.mark.parametrize("path", STREAMED)
async def test_who_is_refused_hears_why_whenever_his_first_message_comes(rig: RpcRig, path: str) -> None:
    """gRPC's client would tell of a broken stream instead, where the refusal meets the message on its way."""
    rig.policy_path.write_text("principals = []\n")
    rig.policy.reload()
    async with grpc.aio.insecure_channel(rig.address) as channel:
        stream = opened(channel, path, "operator")
        told = asyncio.ensure_future(stream.code())
        await stream.wait_for_connection()
        await asyncio.wait({told}, timeout=0.1)
        assert not told.done()
        await stream.write(aim(METHODS[path], OWN))
        assert await told is grpc.StatusCode.UNAUTHENTICATED


async def test_who_is_refused_and_sends_nothing_hears_it_after_a_while(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plasmavmc.rpc.gate.FIRST_S", 0.01)
    rig.policy_path.write_text("principals = []\n")
    rig.policy.reload()
    async with grpc.aio.insecure_channel(rig.address) as channel:
        async with asyncio.timeout(20):
            assert await opened(channel, STREAMED[0], "operator").code() is grpc.StatusCode.UNAUTHENTICATED


async def test_lists_hold_what_is_ones_own_and_what_all_may_use(rig: RpcRig) -> None:
    await furnish(rig)
    async with rig.client("operator") as client:
        assert [vm.spec.id async for vm in client.vms.list_vms()] == ["vm_ours"]
        assert [image.names async for image in client.images.list_images()] == [
            ("image-ours:latest",),
            ("sample:latest",),
        ]
        assert [node async for node in client.nodes.list_nodes()] == []
        assert (await client.images.get("sample")).names == ("sample:latest",)
    async with rig.client("nobody") as client:
        assert [vm async for vm in client.vms.list_vms()] == []


def test_whoever_may_do_something_may_see_it() -> None:
    for actions in ROLES.values():
        assert {seeing(action) for action in actions} <= actions
