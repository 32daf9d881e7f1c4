"""The schema: generated code is what the schema says, and all of it can be found and called by reflection alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from plasmavmc.hypervisor.registry import HypervisorRegistry
from plasmavmc.rpc.v1 import types_pb2, vm_pb2
from plasmavmc.rpc.v1.vm_pb2_grpc import VmServiceStub
from tests.rpc.rpc_rig import RpcRig

ROOT = Path(__file__).resolve().parents[2]
SERVICES = {"plasmavmc.v1.VmService", "plasmavmc.v1.ImageService", "plasmavmc.v1.NodeService"}


def test_the_generated_code_is_what_the_schema_says() -> None:
    command = [sys.executable, str(ROOT / "scripts/generate-proto"), "--check"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0, (
        "run scripts/generate-proto"
    )


class Reflection:
    """What a client knows that has no generated code."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = cast("Any", ServerReflectionStub(channel))
        self._pool = DescriptorPool()
        self._known: set[str] = set()

    async def services(self) -> set[str]:
        answer = await self._ask(list_services="")
        return {service.name for service in answer.list_services_response.service}

    async def service(self, name: str) -> Any:
        answer = await self._ask(file_containing_symbol=name)
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            await self._add(FileDescriptorProto.FromString(raw))
        return self._pool.FindServiceByName(name)

    async def _add(self, file: FileDescriptorProto) -> None:
        if file.name in self._known:
            return
        self._known.add(file.name)
        for needed in file.dependency:
            if needed not in self._known:
                answer = await self._ask(file_by_filename=needed)
                for raw in answer.file_descriptor_response.file_descriptor_proto:
                    await self._add(FileDescriptorProto.FromString(raw))
        self._pool.Add(file)  # type: ignore[attr-defined]

    async def _ask(self, **what: str) -> Any:
        call = self._stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**what)]))
        return await call.read()


async def test_everything_can_be_found_and_called_by_reflection(rig: RpcRig) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        reflection = Reflection(channel)
        assert await reflection.services() >= SERVICES | {"grpc.health.v1.Health"}
        called = 0
        for name in sorted(SERVICES):
            for method in (await reflection.service(name)).methods:
                answer = await call_blind(channel, method)
                assert answer != "UNIMPLEMENTED", method.full_name
                called += 1
        assert called == 28


async def call_blind(channel: grpc.aio.Channel, method: Any) -> str:
    """Call a method with an empty request; the name of its status, where it answers at once."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
    request, decode = GetMessageClass(method.input_type)(), GetMessageClass(method.output_type).FromString
    remote = getattr(channel, kind)(
        path, request_serializer=lambda each: each.SerializeToString(), response_deserializer=decode
    )
    given = iter([request]) if method.client_streaming else request
    try:
        call = remote(given)
        if method.server_streaming:
            await call.read()
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_reflection_opens_nothing_and_an_unknown_method_is_none(rig: RpcRig) -> None:
    rig.policy_path.write_text("principals = []\n")
    rig.policy.reload()
    async with grpc.aio.insecure_channel(rig.address) as channel:
        assert await Reflection(channel).services() >= SERVICES
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await VmServiceStub(channel).ListVms(vm_pb2.ListVmsRequest())
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary("/plasmavmc.v1.VmService/NoSuch")(b"")
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_told_for_each_service(rig: RpcRig) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        stub = cast("Any", HealthStub(channel))

        async def of(service: str) -> str:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

        assert {await of(service) for service in ("", *SERVICES)} == {"SERVING"}
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await of("nothing")
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        await rig.services.settled(HypervisorRegistry())
        assert await of("plasmavmc.v1.VmService") == "NOT_SERVING", "no backend, no VMs"
        assert await of("plasmavmc.v1.ImageService") == "SERVING"
        await rig.services.tell_end()
        assert await of("") == "NOT_SERVING"


async def test_a_request_that_is_no_message_is_refused_without_a_traceback(
    rig: RpcRig, capfd: pytest.CaptureFixture[str]
) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        for path in ("CreateVm", "GetVm"):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await channel.unary_unary(f"/plasmavmc.v1.VmService/{path}")(b"\xff\xff\xff")
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stream = channel.stream_stream("/plasmavmc.v1.VmService/ExecVm")(iter([b"\xff\xff\xff"]))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream.read()
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_a_request_that_is_too_large_is_refused(rig: RpcRig) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        spec = types_pb2.VmSpec(image="sample", files=[types_pb2.FileSpec(path="/x", content=bytes(5 << 20))])
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await VmServiceStub(channel).CreateVm(vm_pb2.CreateVmRequest(spec=spec))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rig.manager.list_vms() == ()


async def test_fields_of_a_later_schema_are_passed_over(rig: RpcRig) -> None:
    unknown = b"\xfa\x7f\x03new"
    async with rig.client() as root, grpc.aio.insecure_channel(rig.address) as channel:
        await root.vms.create(rig.spec())
        raw = await channel.unary_unary("/plasmavmc.v1.VmService/GetVm")(
            vm_pb2.GetVmRequest(vm_id="vm_one").SerializeToString() + unknown
        )
        assert types_pb2.Vm.FromString(raw).spec.id == "vm_one"


async def test_a_defect_is_told_by_a_number_and_nothing_else(
    rig: RpcRig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret-canary")

    monkeypatch.setattr(rig.vms, "list_vms", broken)
    async with grpc.aio.insecure_channel(rig.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await VmServiceStub(channel).ListVms(vm_pb2.ListVmsRequest())
    assert error.value.code() is grpc.StatusCode.INTERNAL
    words = str(error.value.details())
    assert "secret-canary" not in words + repr(error.value.trailing_metadata())
    number = words.removeprefix("internal error ").partition(";")[0]
    logged = capsys.readouterr().out
    assert number in logged
    assert "secret-canary" in logged


async def test_a_servicer_that_forgets_to_ask_gets_no_answer_out(rig: RpcRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forgetful(_self: object, request: object, context: object) -> types_pb2.Vm:
        return types_pb2.Vm(spec=types_pb2.VmSpec(id="leaked"))

    monkeypatch.setattr(rig.services._vm_servicer, "_told", forgetful.__get__(rig.services._vm_servicer))
    async with grpc.aio.insecure_channel(rig.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await VmServiceStub(channel).GetVm(vm_pb2.GetVmRequest(vm_id="vm_one"))
        assert error.value.code() is grpc.StatusCode.INTERNAL


async def test_an_error_names_itself_for_generic_clients(rig: RpcRig) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await VmServiceStub(channel).GetVm(vm_pb2.GetVmRequest(vm_id="vm_none"))
        status = Status.FromString(dict(error.value.trailing_metadata())["grpc-status-details-bin"])
        info = ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (status.code, info.domain, info.reason) == (5, "plasmavmc", "vm-not-found")
