"""What every engine must do, whatever it runs VMs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Protocol

import pytest

from shellwego.core.apps import RestartPolicy
from shellwego.core.assignments import Workload
from shellwego.core.destinations import Destination, IpProtocol
from shellwego.core.errors import ConflictError, InvalidError, NotFoundError
from shellwego.core.openings import Opening
from shellwego.ports.engine import Engine, ExecData, ExecDone, VmOrder, VmPhase, VmView
from shellwego.ports.streams import StreamKind, StreamRequest
from tests.bytes import first_difference

DEADLINE_S = 120.0


@dataclass(slots=True)
class EngineUnderTest:
    engine: Engine
    digest: str
    """Of an image that every workload can run from."""
    again: MakeEngine | None = None
    """Makes the engine that comes after this one on its host; where it matters."""
    write: Callable[[str, bytes], Awaitable[None]] | None = None
    """Writes into a volume, as a VM that has it would; where it matters."""


class MakeEngine(Protocol):
    async def __call__(self) -> EngineUnderTest: ...


def order(under_test: EngineUnderTest, name: str, *command: str, attempt: int = 1) -> VmOrder:
    """An order for a workload: `serve` runs until stopped, `exit N` ends with N at once."""
    workload = Workload(
        organization_id="org_1",
        project_id="prj_1",
        network_id="net_1",
        app_id="app_1",
        app_name="shop",
        process="web",
        release=1,
        image_digest=under_test.digest,
        command=command,
        entrypoint=None,
        env={"GREETING": "hello"},
        memory_bytes=128 << 20,
        cpu_milli=1000,
        vcpus=1,
        disk_bytes=4096 << 20,
        port=8080,
        checks=(),
        restart=RestartPolicy(),
        stop_signal=None,
        stop_grace_s=5.0,
    )
    return VmOrder(vm_id=f"vm_{name}_{attempt}", instance_id=f"ins_{name}", attempt=attempt, workload=workload)


async def see(engine: Engine, vm_id: str, holds: Callable[[VmView], bool]) -> VmView:
    """Wait for a VM to be as described, woken by the engine alone."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for view in await engine.observe():
                if view.vm_id == vm_id and holds(view):
                    return view
            await engine.changed()


def running(view: VmView) -> bool:
    return view.phase is VmPhase.RUNNING


def ended(view: VmView) -> bool:
    return view.phase is VmPhase.ENDED


def asleep(view: VmView) -> bool:
    return view.phase is VmPhase.ASLEEP


def exec_request(*command: str) -> StreamRequest:
    return StreamRequest(kind=StreamKind.EXEC, instance_id="ins_a", command=command)


def copy_request(kind: StreamKind, path: str) -> StreamRequest:
    return StreamRequest(kind=kind, instance_id="ins_a", path=path, name="data")


KNOWN = b"what it knew"


async def sleeping(under_test: EngineUnderTest) -> None:
    """A VM that sleeps, and knows something."""
    engine = under_test.engine
    await engine.run(order(under_test, "a", "serve"))
    await see(engine, "vm_a_1", running)
    channel = await engine.join("vm_a_1", copy_request(StreamKind.COPY_IN, "/data"))
    await channel.send(KNOWN)
    await channel.send_eof()
    assert [item async for item in channel.output()][-1] == ExecDone(code=0)
    await channel.aclose()
    await engine.suspend("vm_a_1")


async def copied_out(engine: Engine, vm_id: str) -> bytes:
    channel = await engine.join(vm_id, copy_request(StreamKind.COPY_OUT, "/data"))
    try:
        return b"".join([item.data async for item in channel.output() if isinstance(item, ExecData)])
    finally:
        await channel.aclose()


async def one_chunk(data: bytes) -> AsyncGenerator[bytes]:
    yield data


class EngineContract:
    """Subclass it with a fixture `make`."""

    @pytest.fixture
    def make(self) -> MakeEngine:
        raise AssertionError("a subclass provides `make`")

    async def test_a_vm_of_a_numbered_network_has_a_private_address(self, make: MakeEngine) -> None:
        tested = await make()
        numbered, plain = order(tested, "a", "serve"), order(tested, "b", "serve")
        workload = replace(numbered.workload, network_number=7, private_prefix="fd12:3456:789a::/48")
        for each in (replace(numbered, workload=workload), plain):
            await tested.engine.run(each)
        seen = await see(tested.engine, "vm_a_1", running)
        address = IPv6Address(seen.private_address)
        assert address in IPv6Network("fd12:3456:789a::/48")
        assert int(address) & (1 << 64) - 1 == 7 << 32 | int(IPv4Address(seen.address))
        assert (await see(tested.engine, "vm_b_1", running)).private_address == ""
        await tested.engine.stop("vm_a_1", 5.0)
        assert (await see(tested.engine, "vm_a_1", ended)).private_address == ""

    async def test_what_a_vm_may_reach_begins_as_ordered_and_is_changed_while_it_runs(self, make: MakeEngine) -> None:
        tested = await make()
        tls = Destination(network="203.0.113.0/24", protocol=IpProtocol.TCP, first_port=443, last_port=443)
        plain = order(tested, "a", "serve")
        await tested.engine.run(replace(plain, workload=replace(plain.workload, egress=(tls,))))
        assert (await see(tested.engine, "vm_a_1", running)).egress == (tls,)
        for egress in (None, (), (tls, replace(tls, protocol=IpProtocol.UDP))):
            await tested.engine.restrict("vm_a_1", egress)
            assert (await see(tested.engine, "vm_a_1", running)).egress == egress
        with pytest.raises(NotFoundError):
            await tested.engine.restrict("vm_stranger", ())

    async def test_what_may_be_opened_to_a_vm_begins_as_ordered_and_is_changed_while_it_runs(
        self, make: MakeEngine
    ) -> None:
        tested = await make()
        web = Opening(identity="app_web", protocol=IpProtocol.TCP, first_port=5432, last_port=5432)
        plain = order(tested, "a", "serve")
        await tested.engine.run(replace(plain, workload=replace(plain.workload, ingress=(web,))))
        seen = await see(tested.engine, "vm_a_1", running)
        assert (seen.identity, seen.ingress) == (plain.workload.app_id, (web,))
        for identity, ingress in (("app_b", None), ("app_a", ()), ("app_a", (web, Opening()))):
            await tested.engine.screen("vm_a_1", identity, ingress)
            seen = await see(tested.engine, "vm_a_1", running)
            assert (seen.identity, seen.ingress) == (identity, ingress)
        await tested.engine.recognize({"app_web": ("fd12:3456:789a:1:0:7:a40:1002",)})
        with pytest.raises(NotFoundError):
            await tested.engine.screen("vm_stranger", "app_a", ())

    async def test_an_order_becomes_a_running_vm_that_says_whose_it_is(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve", attempt=3))
        view = await see(engine, "vm_a_3", running)
        assert (view.instance_id, view.attempt) == ("ins_a", 3)
        assert view.address.count(".") == 3

    async def test_what_a_vm_uses_is_told_while_it_runs_and_of_a_stranger_nothing(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        assert (await engine.usage("vm_a_1")).memory_bytes > 0
        with pytest.raises(NotFoundError):
            await engine.usage("vm_stranger")

    async def test_what_vms_send_is_counted_of_those_that_are_there(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        assert await engine.traffic() == {}
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        assert (await engine.traffic()).keys() <= {"vm_a_1"}
        await engine.stop("vm_a_1", 0)
        await see(engine, "vm_a_1", ended)
        await engine.delete("vm_a_1")
        assert await engine.traffic() == {}

    async def test_the_same_order_twice_is_one_vm(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        assert [view.vm_id for view in await engine.observe()] == ["vm_a_1"]

    async def test_two_vms_have_two_addresses(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        for name in ("a", "b"):
            await engine.run(order(under_test, name, "serve"))
        addresses = {(await see(engine, f"vm_{name}_1", running)).address for name in ("a", "b")}
        assert len(addresses) == 2

    async def test_a_workload_that_ends_by_itself_shows_its_exit_code(self, make: MakeEngine) -> None:
        under_test = await make()
        await under_test.engine.run(order(under_test, "a", "exit", "3"))
        view = await see(under_test.engine, "vm_a_1", ended)
        assert (view.exit_code, view.asked, view.reason_code) == (3, False, "exited")
        assert "exit code 3" in view.reason

    async def test_what_is_copied_in_can_be_copied_out(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        archive = bytes(range(256)) * 64
        inwards = await engine.join("vm_a_1", copy_request(StreamKind.COPY_IN, "/data"))
        await inwards.send(archive)
        await inwards.send_eof()
        assert [item async for item in inwards.output()] == [ExecDone(code=0)]
        outwards = await engine.join("vm_a_1", copy_request(StreamKind.COPY_OUT, "/data"))
        *pieces, end = [item async for item in outwards.output()]
        got = b"".join(item.data for item in pieces if isinstance(item, ExecData))
        assert first_difference(got, archive) is None
        assert end == ExecDone(code=0)

    async def test_a_copy_of_what_is_not_there_or_of_no_path_is_refused(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        for path, refusal in (("/none", ConflictError), ("relative", InvalidError)):
            with pytest.raises(refusal):  # noqa: PT012 - at once, or as the guest says so
                channel = await engine.join("vm_a_1", copy_request(StreamKind.COPY_OUT, path))
                async for _ in channel.output():
                    pass

    async def test_who_is_attached_hears_the_end_and_letting_go_leaves_the_workload_alone(
        self, make: MakeEngine
    ) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        request = StreamRequest(kind=StreamKind.ATTACH, instance_id="ins_a")
        await (await engine.join("vm_a_1", request)).aclose()
        channel = await engine.join("vm_a_1", request)
        assert (await see(engine, "vm_a_1", running)).phase is VmPhase.RUNNING
        await engine.stop("vm_a_1", 1.0)
        items = [item async for item in channel.output()]
        assert isinstance(items[-1], ExecDone)
        await see(engine, "vm_a_1", ended)
        with pytest.raises(ConflictError):
            await engine.join("vm_a_1", request)

    async def test_a_suspended_vm_sleeps_until_it_is_resumed(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        before = await see(engine, "vm_a_1", running)
        for _ in range(2):
            await engine.suspend("vm_a_1")
            assert (await see(engine, "vm_a_1", asleep)).phase is VmPhase.ASLEEP
        with pytest.raises(ConflictError):
            await engine.exec("vm_a_1", exec_request("true"))
        for _ in range(2):
            await engine.resume("vm_a_1")
            assert (await see(engine, "vm_a_1", running)).address == before.address

    async def test_a_suspended_vm_that_is_stopped_ends_without_having_run_again(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        await engine.suspend("vm_a_1")
        await engine.stop("vm_a_1", 1.0)
        view = await see(engine, "vm_a_1", ended)
        assert (view.asked, view.exit_code) == (True, None)
        with pytest.raises(ConflictError):
            await engine.resume("vm_a_1")
        with pytest.raises(ConflictError):
            await engine.suspend("vm_a_1")

    @pytest.fixture
    def elsewhere(self) -> MakeEngine:
        raise AssertionError("a subclass provides `elsewhere`, an engine on another host like the first")

    async def test_what_sleeps_goes_on_elsewhere_with_what_it_knew(
        self, make: MakeEngine, elsewhere: MakeEngine
    ) -> None:
        here, there = await make(), await elsewhere()
        await sleeping(here)
        await there.engine.import_memory(order(there, "b", "serve"), here.engine.export_memory("vm_a_1"))
        view = await see(there.engine, "vm_b_1", asleep)
        assert (view.instance_id, view.attempt, view.address) == ("ins_b", 1, "")
        assert (await see(here.engine, "vm_a_1", asleep)).phase is VmPhase.ASLEEP
        await there.engine.resume("vm_b_1")
        assert (await see(there.engine, "vm_b_1", running)).address
        assert await copied_out(there.engine, "vm_b_1") == KNOWN

    async def test_only_what_sleeps_can_be_sent_elsewhere(self, make: MakeEngine) -> None:
        under_test = await make()
        await under_test.engine.run(order(under_test, "a", "serve"))
        await see(under_test.engine, "vm_a_1", running)
        with pytest.raises(ConflictError):
            await anext(under_test.engine.export_memory("vm_a_1"))
        with pytest.raises(NotFoundError):
            await anext(under_test.engine.export_memory("vm_none"))

    @pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
    async def test_of_a_memory_that_breaks_off_nothing_is_there(
        self, make: MakeEngine, elsewhere: MakeEngine, part: float
    ) -> None:
        here, there = await make(), await elsewhere()
        await sleeping(here)
        sent = b"".join([chunk async for chunk in here.engine.export_memory("vm_a_1")])
        with pytest.raises(InvalidError) as refused:
            await there.engine.import_memory(order(there, "b", "serve"), one_chunk(sent[: int(len(sent) * part)]))
        assert refused.value.code == "snapshot-damaged"
        assert await there.engine.observe() == ()
        await there.engine.import_memory(order(there, "b", "serve"), one_chunk(sent))

    async def test_a_memory_is_for_nobody_else(self, make: MakeEngine, elsewhere: MakeEngine) -> None:
        here, there = await make(), await elsewhere()
        await sleeping(here)
        made = order(there, "b", "serve")
        for changes in ({"project_id": "prj_2"}, {"organization_id": "org_2"}):
            stranger = replace(made, workload=replace(made.workload, **changes))
            with pytest.raises(ConflictError) as refused:
                await there.engine.import_memory(stranger, here.engine.export_memory("vm_a_1"))
            assert refused.value.code == "snapshot-foreign"
        assert await there.engine.observe() == ()

    async def test_a_vm_that_is_there_is_not_imported_over(self, make: MakeEngine, elsewhere: MakeEngine) -> None:
        here, there = await make(), await elsewhere()
        await sleeping(here)
        await there.engine.import_memory(order(there, "b", "serve"), here.engine.export_memory("vm_a_1"))
        with pytest.raises(ConflictError):
            await there.engine.import_memory(order(there, "b", "serve"), here.engine.export_memory("vm_a_1"))
        assert (await see(there.engine, "vm_b_1", asleep)).phase is VmPhase.ASLEEP

    async def test_hosts_that_are_alike_say_so(self, make: MakeEngine, elsewhere: MakeEngine) -> None:
        here, there = await (await make()).engine.facts(), await (await elsewhere()).engine.facts()
        assert here.backends[0].snapshot_host == there.backends[0].snapshot_host != ()

    async def test_a_stopped_vm_ends_as_asked(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        await engine.stop("vm_a_1", 5.0)
        view = await see(engine, "vm_a_1", ended)
        assert view.asked
        assert view.address == ""

    async def test_stopping_twice_is_stopping_once(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        await engine.stop("vm_a_1", 5.0)
        await engine.stop("vm_a_1", 5.0)
        await see(engine, "vm_a_1", ended)
        await engine.stop("vm_a_1", 5.0)

    async def test_a_vm_can_be_stopped_before_it_runs(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await engine.stop("vm_a_1", 5.0)
        assert (await see(engine, "vm_a_1", ended)).asked

    async def test_a_deleted_vm_is_gone_and_deleting_it_again_is_fine(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "exit", "0"))
        await see(engine, "vm_a_1", ended)
        await engine.delete("vm_a_1")
        await engine.delete("vm_a_1")
        assert await engine.observe() == ()

    async def test_an_unknown_vm_cannot_be_stopped_or_entered(self, make: MakeEngine) -> None:
        engine = (await make()).engine
        with pytest.raises(NotFoundError):
            await engine.stop("vm_nobody_1", 1.0)
        with pytest.raises(NotFoundError):
            await engine.exec("vm_nobody_1", exec_request("true"))

    async def test_a_command_runs_in_a_running_vm(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        session = await engine.exec("vm_a_1", exec_request("echo", "from", "inside"))
        output = [item async for item in session.output()]
        assert b"".join(item.data for item in output if isinstance(item, ExecData)) == b"from inside\n"
        assert output[-1] == ExecDone(code=0)

    async def test_a_command_passes_its_exit_code(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        session = await engine.exec("vm_a_1", exec_request("exit", "7"))
        assert [item async for item in session.output()][-1] == ExecDone(code=7)

    async def test_a_command_that_is_not_there_ends_as_in_a_shell(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        session = await engine.exec("vm_a_1", exec_request("nonsense"))
        told, end = [item async for item in session.output()]
        assert isinstance(told, ExecData)
        assert (told.stream, end) == ("stderr", ExecDone(code=127))
        assert b"nonsense was not found" in told.data

    async def test_no_command_runs_in_an_ended_vm(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "exit", "0"))
        await see(engine, "vm_a_1", ended)
        with pytest.raises(ConflictError):
            await engine.exec("vm_a_1", exec_request("true"))

    async def test_the_log_of_an_ended_vm_can_be_read_and_its_end_shows_the_last_lines(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "exit", "1"))
        view = await see(engine, "vm_a_1", ended)
        async with asyncio.timeout(DEADLINE_S):
            lines = [record.text async for record in engine.logs("vm_a_1", follow=True, tail=10, since=0.0)]
        assert "hello" in lines
        assert "hello" in view.log_tail

    async def test_closing_without_keeping_stops_every_vm(self, make: MakeEngine) -> None:
        under_test = await make()
        engine = under_test.engine
        await engine.run(order(under_test, "a", "serve"))
        await see(engine, "vm_a_1", running)
        await engine.close(keep_vms=False)
        assert all(view.phase is VmPhase.ENDED for view in await engine.observe())

    async def test_a_node_says_what_it_has(self, make: MakeEngine) -> None:
        facts = await (await make()).engine.facts()
        assert facts.cpu_milli > 0
        assert facts.memory_bytes > 0
        assert 0 < facts.room_on_disk <= facts.disk_bytes
        assert facts.backends[0].status == "ready"
