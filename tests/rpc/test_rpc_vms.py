"""VmService over a real server: lives of VMs, what is told and what is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Network

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, PreconditionFailure
from google.rpc.status_pb2 import Status

from plasmavmc.errors import (
    CapacityError,
    ConflictError,
    ForbiddenError,
    InvalidSpecError,
    NotFoundError,
    UnauthenticatedError,
)
from plasmavmc.policy import Destination, IpProtocol, Opening
from plasmavmc.rpc.api import VmFilter
from plasmavmc.rpc.client import EngineClient
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.rpc.v1.vm_pb2_grpc import VmServiceStub
from plasmavmc.states import VmState
from plasmavmc.types import ExecSpec, FileSpec, ForkIdentity, NetworkSpec, PublishedPort, Scope, Vm, VmResources, mac_of
from tests.rpc.rpc_rig import ACME, OTHER, TOKENS, RpcRig, running
from tests.waiting import until


async def reached(client: EngineClient, vm_id: str, state: VmState) -> Vm:
    async def look() -> Vm | None:
        vm = await client.vms.get(vm_id)
        return vm if vm.status.state is state else None

    found = await until(look, f"{vm_id} is {state}")
    assert found is not None
    return found


async def test_a_vm_is_created_runs_is_stopped_and_deleted(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        made = await client.vms.create(rig.spec())
        assert made.status.state is VmState.PENDING
        await client.vms.start("vm_one")
        runs = await reached(client, "vm_one", VmState.RUNNING)
        assert runs.status.backend == "memory"
        assert runs.status.usage.memory_rss_bytes == 128 << 20
        assert [vm async for vm in client.vms.list_vms(VmFilter())] == [runs], "a list tells what is used too"
        stopped = await client.vms.stop("vm_one")
        assert stopped.status.state is VmState.STOPPED
        assert stopped.status.reason_code == "stopped"
        assert stopped.status.log_tail == ("hello",)
        await client.vms.delete("vm_one")
        with pytest.raises(NotFoundError, match="there is no VM vm_one"):
            await client.vms.get("vm_one")
        await client.vms.delete("vm_one")


async def test_environment_and_files_never_come_back(rig: RpcRig) -> None:
    spec = replace(rig.spec(), files=(FileSpec("/etc/secret", b"canary-value"),))
    async with rig.client("operator") as client:
        told = [await client.vms.create(spec, start=True), await reached(client, "vm_one", VmState.RUNNING)]
        told += [vm async for vm in client.vms.list_vms()]
        async for event in client.vms.watch():
            if event.vm:
                told.append(event.vm)
            if event.snapshot_complete:
                break
        told.append(await client.vms.stop("vm_one"))
        assert len(told) == 5
        assert all("canary-value" not in repr(vm) for vm in told)
    assert rig.manager.get("vm_one").spec.env == {"TOKEN": "canary-value"}, "the engine itself has it"


async def test_what_is_left_open_is_chosen_by_the_server(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        spec = replace(rig.spec(scope=Scope("", "")), id="", name="", image="sample")
        made = await client.vms.create(spec)
        assert made.spec.id.startswith("vm_")
        assert made.spec.name.startswith("vm-")
        assert made.spec.scope == ACME
        assert made.spec.image == rig.engine.sample.digest
    async with rig.client() as root:
        with pytest.raises(InvalidSpecError, match="name org and project") as refused:
            await root.vms.create(spec)
        assert refused.value.field == "spec.scope"


async def test_a_command_that_ends_by_itself_gives_its_code(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec(command=("exit", "3")), start=True)
        ended = await reached(client, "vm_one", VmState.STOPPED)
        assert (ended.status.exit_code, ended.status.reason_code) == (3, "exited")


async def test_a_vm_that_has_ended_is_not_started_but_restarted(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec(), start=True)
        await reached(client, "vm_one", VmState.RUNNING)
        again = await client.vms.start("vm_one")
        assert again.status.state is VmState.RUNNING
        await client.vms.stop("vm_one")
        with pytest.raises(ConflictError, match="has run and is stopped") as refused:
            await client.vms.start("vm_one")
        assert refused.value.code == "vm-ended"
        assert "Restart" in refused.value.resolution
        await client.vms.restart("vm_one")
        await reached(client, "vm_one", VmState.RUNNING)

        async def both_told() -> bool:
            lines = [line.text async for line in client.vms.logs("vm_one")]
            return lines == ["hello", "a new run of this VM begins", "hello"]

        await until(both_told, "both runs are in the log")


async def test_a_vm_whose_environment_was_forgotten_is_not_restarted(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec(), start=True)
        await client.vms.create(replace(rig.spec("bare"), env={}), start=True)
        for vm_id in ("vm_one", "vm_bare"):
            await reached(client, vm_id, VmState.RUNNING)
    await rig.manager.close(keep_vms=True)
    async with running(engine=rig.engine) as after, after.client("operator") as client:
        with pytest.raises(ConflictError, match="never written to a disk") as refused:
            await client.vms.restart("vm_one")
        assert refused.value.code == "spec-forgotten"
        assert (await client.vms.get("vm_one")).status.state is VmState.RUNNING
        await client.vms.restart("vm_bare")
        await reached(client, "vm_bare", VmState.RUNNING)


async def test_a_vm_sleeps_on_disk_and_wakes(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec(), start=True)
        await reached(client, "vm_one", VmState.RUNNING)
        assert (await client.vms.suspend("vm_one")).status.state is VmState.SUSPENDED
        with pytest.raises(ConflictError, match="suspended"):
            await client.vms.exec("vm_one", ExecSpec(("echo",)))
        assert (await client.vms.resume("vm_one")).status.state is VmState.RUNNING


async def test_what_a_vm_may_reach_is_changed_while_it_lives(rig: RpcRig) -> None:
    tls = Destination(IPv4Network("203.0.113.0/24"), IpProtocol.TCP, 443, 443)
    spec = rig.spec()
    async with rig.client("operator") as client:
        made = await client.vms.create(replace(spec, networks=(NetworkSpec("", "default", egress=(tls,)),)), start=True)
        assert made.spec.networks[0].egress == (tls,)
        await reached(client, "vm_one", VmState.RUNNING)
        for egress in ((), None, (tls, replace(tls, protocol=IpProtocol.UDP))):
            changed = await client.vms.restrict("vm_one", egress)
            assert changed.spec.networks[0].egress == egress
        with pytest.raises(InvalidSpecError, match=r"egress\.destinations\[0\]\.last_port"):
            await client.vms.restrict("vm_one", (replace(tls, last_port=1),))
        assert (await client.vms.get("vm_one")).spec.networks[0].egress == egress


async def test_what_may_be_opened_to_a_vm_is_changed_while_it_lives(rig: RpcRig) -> None:
    web = Opening("web", IpProtocol.TCP, 5432, 5432)
    spec = rig.spec()
    async with rig.client("operator") as client:
        networks = (NetworkSpec("", "default", identity="db", ingress=(web,)),)
        made = await client.vms.create(replace(spec, networks=networks), start=True)
        assert (made.spec.networks[0].identity, made.spec.networks[0].ingress) == ("db", (web,))
        await reached(client, "vm_one", VmState.RUNNING)
        for identity, ingress in (("db", ()), ("", None), ("store", (web, Opening()))):
            changed = (await client.vms.screen("vm_one", identity, ingress)).spec.networks[0]
            assert (changed.identity, changed.ingress) == (identity, ingress)
        with pytest.raises(InvalidSpecError, match=r"ingress\.openings\[0\]\.last_port"):
            await client.vms.screen("vm_one", "db", (replace(web, last_port=1),))
        with pytest.raises(InvalidSpecError, match="identity"):
            await client.vms.screen("vm_one", "a b", ())
        assert (await client.vms.get("vm_one")).spec.networks[0].ingress == ingress


async def test_a_vm_is_copied_only_where_that_is_declared_safe(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        for name, safe in (("one", False), ("two", True)):
            await client.vms.create(replace(rig.spec(name), snapshot_safe=safe), start=True)
            await reached(client, f"vm_{name}", VmState.RUNNING)
        with pytest.raises(ConflictError) as refused:
            await client.vms.fork("vm_one", [ForkIdentity("", "copy")])
        assert refused.value.code == "not-snapshot-safe"
        [first, second] = await client.vms.fork("vm_two", [ForkIdentity("", "left"), ForkIdentity("vm_right", "right")])
        assert (first.spec.name, second.spec.id) == ("left", "vm_right")
        for copy in (first, second):
            await reached(client, copy.spec.id, VmState.RUNNING)


async def test_an_error_carries_what_generic_clients_know(rig: RpcRig) -> None:
    metadata = (("authorization", f"Bearer {TOKENS['operator']}"),)
    async with grpc.aio.insecure_channel(rig.address) as channel:
        stub = VmServiceStub(channel)
        async with rig.client("operator") as client:
            await client.vms.create(rig.spec())
            await client.vms.stop("vm_one")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.StartVm(vm_pb2.StartVmRequest(vm_id="vm_one"), metadata=metadata)
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        status = Status.FromString(dict(error.value.trailing_metadata())["grpc-status-details-bin"])
        info, failure = ErrorInfo(), PreconditionFailure()
        assert any(detail.Unpack(info) for detail in status.details)
        assert any(detail.Unpack(failure) for detail in status.details)
        assert (info.reason, info.domain, info.metadata["state"]) == ("vm-ended", "plasmavmc", "stopped")
        (violation,) = failure.violations
        assert (violation.type, violation.subject, violation.description) == ("vm-ended", "vm_one", "stopped")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.CreateVm(vm_pb2.CreateVmRequest(), metadata=metadata)
        status = Status.FromString(dict(error.value.trailing_metadata())["grpc-status-details-bin"])
        request = BadRequest()
        assert any(detail.Unpack(request) for detail in status.details)
        assert [each.field for each in request.field_violations] == ["spec.image"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "VM"}, "spec.id"),
        ({"name": "No Name"}, "spec.name"),
        ({"resources": VmResources(memory_bytes=1)}, "spec.resources.memory_bytes"),
        ({"resources": VmResources(vcpus=1000)}, "spec.resources.vcpus"),
        ({"env": {"1": "x"}}, "spec.env"),
        ({"env": {"A": "x\0"}}, "spec.env"),
        ({"stop_signal": "NOSUCH"}, "spec.stop_signal"),
        ({"stop_grace_s": 1e9}, "spec.stop_grace"),
        ({"backend": "nope"}, "spec.backend"),
        ({"scope": Scope("acme", "")}, "spec.scope.project"),
        ({"files": (FileSpec("relative", b""),)}, "spec.files[0].path"),
        ({"command": ("a\0b",)}, "spec.command[0]"),
        ({"labels": {"l": "x" * 300}}, "spec.labels['l']"),
        ({"published": tuple(PublishedPort(20_000 + number, 80) for number in range(65))}, "spec.published"),
    ],
)
async def test_each_bad_field_is_named(rig: RpcRig, change: dict[str, object], field: str) -> None:
    async with rig.client() as client:
        with pytest.raises(InvalidSpecError) as refused:
            await client.vms.create(replace(rig.spec(), **change))  # type: ignore[arg-type]
        assert refused.value.field == field
        assert [vm async for vm in client.vms.list_vms()] == [], "nothing is stored half"


async def test_more_memory_than_the_host_has_is_refused(rig: RpcRig) -> None:
    capacity = (await rig.node.get_node("")).capacity.memory_bytes
    async with rig.client("operator") as client:
        most = VmResources(memory_bytes=capacity - (64 << 20))
        await client.vms.create(replace(rig.spec(), resources=most))
        with pytest.raises(CapacityError, match="MiB are left") as refused:
            await client.vms.create(rig.spec("two"))
        assert refused.value.temporary
        await client.vms.delete("vm_one")
        await client.vms.create(rig.spec("two"))


async def room_for(rig: RpcRig, client: EngineClient, left_bytes: int) -> None:
    """Promise all memory but so much to a VM that never starts."""
    node = await rig.node.get_node("")
    rest = node.capacity.memory_bytes - node.promised.memory_bytes - left_bytes
    await client.vms.create(replace(rig.spec("rest"), resources=VmResources(memory_bytes=rest)))


async def test_copies_are_promised_memory_as_any_vm_is(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        origin = await client.vms.create(replace(rig.spec(), snapshot_safe=True), start=True)
        await reached(client, "vm_one", VmState.RUNNING)
        await room_for(rig, client, 3 * origin.spec.resources.memory_bytes)
        four, two = ([ForkIdentity("", f"copy{number}") for number in range(count)] for count in (4, 2))
        with pytest.raises(CapacityError, match="MiB are left") as refused:
            await client.vms.fork("vm_one", four)
        assert refused.value.code == "no-memory"
        assert [vm.spec.id async for vm in client.vms.list_vms()] == ["vm_one", "vm_rest"]
        ends = await asyncio.gather(*(client.vms.fork("vm_one", two) for _ in range(2)), return_exceptions=True)
        assert sum(isinstance(each, CapacityError) for each in ends) == 1, "copies under way are promised theirs"
        assert len([vm async for vm in client.vms.list_vms()]) == 4


async def test_a_vm_that_is_made_anew_keeps_the_memory_it_was_promised(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        made = await client.vms.create(rig.spec(), start=True)
        await reached(client, "vm_one", VmState.RUNNING)
        await room_for(rig, client, 0)
        for ended in (False, True):
            if ended:
                await client.vms.stop("vm_one")
            restart = asyncio.create_task(rig.vms.restart("vm_one"))
            await asyncio.sleep(0)
            while not restart.done():
                with pytest.raises(CapacityError):
                    await rig.vms.create(rig.spec("thief"), start=False)
                await asyncio.sleep(0)
            assert restart.result().spec.resources == made.spec.resources
            await reached(client, "vm_one", VmState.RUNNING)


async def test_a_vm_is_restarted_where_more_memory_was_promised_than_there_is(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec(), start=True)
        await reached(client, "vm_one", VmState.RUNNING)
        rig.node._capacity = replace(rig.node._capacity, memory_bytes=0)
        await client.vms.restart("vm_one")
        with pytest.raises(CapacityError):
            await client.vms.create(rig.spec("two"))


async def test_networks_of_the_same_name_in_two_projects_are_two(rig: RpcRig) -> None:
    async with rig.client() as root:
        ours = await root.vms.create(rig.spec("ours", ACME))
        theirs = await root.vms.create(rig.spec("theirs", OTHER))
    assert ours.spec.networks[0].network_id == theirs.spec.networks[0].network_id == "net_1"
    inside = [vm.spec.networks[0] for vm in rig.manager.list_vms()]
    assert inside[0].network_id != inside[1].network_id
    assert inside[0].mac != inside[1].mac


async def test_two_vms_do_not_get_one_mac_address(rig: RpcRig) -> None:
    def with_mac(name: str) -> object:
        spec = rig.spec(name)
        return replace(spec, networks=(replace(spec.networks[0], mac=mac_of("chosen")),))

    async with rig.client("operator") as client:
        await client.vms.create(with_mac("one"))  # type: ignore[arg-type]
        with pytest.raises(InvalidSpecError, match="another VM") as refused:
            await client.vms.create(with_mac("two"))  # type: ignore[arg-type]
        assert refused.value.field == "spec.networks[0].mac"


async def test_a_copy_has_a_mac_address_of_its_own_which_no_other_vm_gets(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(replace(rig.spec(), snapshot_safe=True), start=True)
        await reached(client, "vm_one", VmState.RUNNING)
        await client.vms.fork("vm_one", [ForkIdentity(f"vm_{name}", name) for name in ("left", "right")])
        for vm_id in ("vm_left", "vm_right"):
            await reached(client, vm_id, VmState.RUNNING)
        await client.vms.stop("vm_left")
        await client.vms.restart("vm_left")
        await reached(client, "vm_left", VmState.RUNNING)
        assert rig.engine.network.rules is not None
        macs = {member.mac for member in rig.engine.network.rules.members}
        assert len(macs) == 3
        for mac in macs:
            spec = rig.spec("thief")
            with pytest.raises(InvalidSpecError, match="another VM"):
                await client.vms.create(replace(spec, networks=(replace(spec.networks[0], mac=mac),)))


async def test_an_id_that_is_taken_is_told_as_taken(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec())
        await client.vms.create(rig.spec())
        with pytest.raises(ConflictError) as refused:
            await client.vms.create(replace(rig.spec(), labels={"other": "1"}))
        assert refused.value.code == "vm-exists"


async def test_lists_are_filtered_and_come_in_pages(rig: RpcRig) -> None:
    async with rig.client() as root:
        for number in range(7):
            await root.vms.create(replace(rig.spec(f"n{number}"), labels={"parity": str(number % 2)}), start=number < 2)
        await root.vms.create(rig.spec("theirs", OTHER))
        for vm_id in ("vm_n0", "vm_n1"):
            await reached(root, vm_id, VmState.RUNNING)
        ids = [vm.spec.id async for vm in root.vms.list_vms(page_size=3)]
        assert ids == [*(f"vm_n{number}" for number in range(7)), "vm_theirs"]
        odd = VmFilter(labels={"parity": "1"}, states=frozenset({VmState.PENDING}), scope=ACME)
        assert [vm.spec.id async for vm in root.vms.list_vms(odd, page_size=1)] == ["vm_n3", "vm_n5"]


async def test_a_page_token_is_good_for_its_own_list_only(rig: RpcRig) -> None:
    async with rig.client() as root, grpc.aio.insecure_channel(rig.address) as channel:
        for number in range(3):
            await root.vms.create(rig.spec(f"n{number}"))
        stub = VmServiceStub(channel)
        first = await stub.ListVms(vm_pb2.ListVmsRequest(page_size=1))
        assert first.next_page_token
        chosen = vm_pb2.VmFilter(labels={"a": "b"})
        for wrong in ("x", "!", "AAAA", first.next_page_token[:-4], "A" * 5000):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.ListVms(vm_pb2.ListVmsRequest(page_token=wrong))
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.ListVms(vm_pb2.ListVmsRequest(filter=chosen, page_token=first.next_page_token))
        assert "page_token" in str(error.value.details())
        await root.vms.delete("vm_n0")
        second = await stub.ListVms(vm_pb2.ListVmsRequest(page_size=1, page_token=first.next_page_token))
        assert [vm.spec.id for vm in second.vms] == ["vm_n1"], "a page stays right while things go"


async def test_a_page_of_large_vms_is_cut_by_its_bytes(rig: RpcRig) -> None:
    async with rig.client() as root, grpc.aio.insecure_channel(rig.address) as channel:
        long = tuple("x" * 100_000 for _ in range(9))
        for number in range(4):
            await root.vms.create(replace(rig.spec(f"n{number}"), command=long))
        answer = await VmServiceStub(channel).ListVms(vm_pb2.ListVmsRequest())
        assert len(answer.vms) == 2
        assert answer.next_page_token
        assert len([vm async for vm in root.vms.list_vms()]) == 4


async def test_who_is_not_known_hears_so(rig: RpcRig) -> None:
    async with rig.client("made-up-token") as client:
        with pytest.raises(UnauthenticatedError, match="not valid"):
            await client.vms.get("vm_one")
    async with rig.client("viewer") as client:
        with pytest.raises(ForbiddenError, match="may not vm:create in acme/web"):
            await client.vms.create(rig.spec())


async def test_logs_follow_until_the_end(rig: RpcRig) -> None:
    async with rig.client("operator") as client:
        await client.vms.create(rig.spec(), start=True)
        await reached(client, "vm_one", VmState.RUNNING)
        lines = []
        async for line in client.vms.logs("vm_one", follow=True):
            lines.append(line.text)
            await client.vms.stop("vm_one")
        assert lines == ["hello"]
        assert [line async for line in client.vms.logs("vm_one", tail=0)] == []
