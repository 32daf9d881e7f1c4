"""What every uplink must do: carry calls of nodes and edges to the control plane, or say that it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pytest

from shellwego.core.apps import Check, CheckKind, RestartMode, RestartPolicy
from shellwego.core.assignments import (
    Assignment,
    Assignments,
    NodeReport,
    Registration,
    SecretsRequest,
    SecretValues,
    VolumeKey,
    VolumeKeyRequest,
    Workload,
)
from shellwego.core.backups import (
    BackupAccess,
    BackupAccessRequest,
    BackupOrder,
    BackupPhase,
    ObservedBackup,
    RepositoryPlace,
)
from shellwego.core.errors import ForbiddenError, UnavailableError
from shellwego.core.instances import Observed, Phase
from shellwego.core.names import NamedService, NetworkNames, NodeNames
from shellwego.core.nodes import Backend, NodeFacts
from shellwego.core.publishing import NodePorts, OpenPort, PortEndpoint, Transport
from shellwego.core.routing import Departed, EdgeReport, Endpoint, Route, RouteState, RouteTable
from shellwego.core.sensitive import Sensitive
from shellwego.core.traffic import NodeTraffic, Passed
from shellwego.ports.uplink import EdgeUplink, NodeUplink

FACTS = NodeFacts(
    hostname="one",
    version="1",
    cpu_milli=2000,
    memory_bytes=1 << 34,
    disk_bytes=1 << 42,
    backends=(Backend(name="kvm", status="ready", acceleration="tcg"),),
    warnings=("the CPU is emulated",),
)
WORKLOAD = Workload(
    organization_id="org_1",
    project_id="prj_1",
    network_id="net_1",
    app_id="app_1",
    app_name="hello",
    process="web",
    release=7,
    image_digest="sha256:0",
    command=("serve", ""),
    entrypoint=None,
    env={"GREETING": "héllo"},
    memory_bytes=1 << 28,
    cpu_milli=500,
    vcpus=1,
    disk_bytes=1 << 32,
    port=8080,
    checks=(Check(kind=CheckKind.HTTP, port=8080, interval_s=0.5),),
    restart=RestartPolicy(mode=RestartMode.ON_FAILURE, retries=5),
    stop_signal="SIGINT",
    stop_grace_s=2.5,
)
ASSIGNMENTS = Assignments(
    node_id="node_1",
    epoch=3,
    items=(
        Assignment(instance_id="ins_1", workload=WORKLOAD, present=True),
        Assignment(instance_id="ins_2", workload=WORKLOAD, present=False),
    ),
    backups=(BackupOrder(backup_id="bak_1", volume_id="vol_1", project_id="prj_1", parent_id="bak_0", freeze=True),),
)
REPORT = NodeReport(
    node_id="node_1",
    epoch=3,
    sequence=1 << 40,
    facts=FACTS,
    backups={"bak_1": ObservedBackup(phase=BackupPhase.DONE, done_bytes=1 << 40, digest="0" * 64)},
    instances={"ins_1": Observed(phase=Phase.HEALTHY, address="10.64.0.5", exit_code=None, log_tail=("a", "b"))},
    traffic=NodeTraffic(apps={"app_1": Passed(transmit_bytes=1 << 62)}, dropped={"arp": 3}),
)
ROUTES = RouteTable(
    version=9,
    routes=(
        Route(
            host="hello.localhost",
            app_id="app_1",
            app_name="hello",
            state=RouteState.SERVING,
            endpoints=(Endpoint(instance_id="ins_1", address="tcp:10.64.0.5:8080"),),
            departed=(Departed(instance_id="ins_2", address="tcp:10.64.0.6:8080"),),
        ),
    ),
)
NAMES = NodeNames(
    version="4",
    networks=(
        NetworkNames(
            network_id="net_1",
            hosts={"shop": ("10.64.0.5",), "ill": ()},
            services={"_web._tcp.shop": (NamedService(target="ins-1.vm", port=8080),)},
            texts={"_apps": ("shop,ill",)},
            identities={"app_1": ("fd12:3456:789a:1:0:7:a40:5",)},
        ),
    ),
)
PORTS = NodePorts(
    version="5",
    ports=(
        OpenPort(
            transport=Transport.UDP,
            port=20_053,
            endpoints=(PortEndpoint(vm_id="vm_1", ipv4="10.64.0.5", port=53, taking=False),),
        ),
        OpenPort(transport=Transport.TCP, port=20_054),
    ),
)
SECRETS_REQUEST = SecretsRequest(node_id="node_1", epoch=3, instance_id="ins_1")
SECRETS = SecretValues(values={"DB_URL": Sensitive.of("pässword"), "KEY": Sensitive.of("x" * 65536)})
BACKUP_REQUEST = BackupAccessRequest(node_id="node_1", epoch=3, backup_id="bak_1", volume_id="vol_1")
BACKUP_ACCESS = BackupAccess(
    place=RepositoryPlace(url="s3://b/p", credentials={"secret_access_key": Sensitive.of("pässword of the store")}),
    project_id="prj_1",
    key=Sensitive(bytes(range(32))),
    digest="0" * 64,
)
KEY_REQUEST = VolumeKeyRequest(node_id="node_1", epoch=3, volume_id="vol_1")
KEY = VolumeKey(key=Sensitive(bytes(range(32))))
EDGE_REPORT = EdgeReport(edge_id="edg_1", applied_version=9, open_sessions={"ins_1": 4})


@dataclass
class Recorder:
    """A control plane that keeps what it is told."""

    got: list[object] = field(default_factory=list)
    refusal: Exception | None = None
    holds_up: asyncio.Event | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def register(self, registration: Registration) -> Assignments:
        await self._take(registration)
        return ASSIGNMENTS

    async def assignments(self, node_id: str) -> Assignments:
        await self._take(node_id)
        return ASSIGNMENTS

    async def report(self, report: NodeReport) -> int:
        await self._take(report)
        return 3

    async def names(self, node_id: str) -> NodeNames:
        await self._take(node_id)
        return NAMES

    async def ports(self, node_id: str) -> NodePorts:
        await self._take(node_id)
        return PORTS

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        await self._take(request)
        return SECRETS

    async def backup_access(self, request: BackupAccessRequest) -> BackupAccess:
        await self._take(request)
        return BACKUP_ACCESS

    async def volume_key(self, request: VolumeKeyRequest) -> VolumeKey:
        await self._take(request)
        return KEY

    async def register_edge(self, name: str) -> str:
        await self._take(name)
        return "edg_1"

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        await self._take((edge_id, known_version))
        return None if known_version == ROUTES.version else ROUTES

    async def report_edge(self, report: EdgeReport) -> None:
        await self._take(report)

    async def _take(self, message: object) -> None:
        self.got.append(message)
        self.arrived.set()
        if self.holds_up is not None:
            await self.holds_up.wait()
        if self.refusal is not None:
            raise self.refusal


class Wire(Protocol):
    """What a test may do to the connection."""

    def cut(self) -> None: ...
    def lose_answers(self) -> None: ...
    def heal(self) -> None: ...


@dataclass(frozen=True)
class Joined:
    """Both uplinks to one control plane."""

    node: NodeUplink
    edge: EdgeUplink
    wire: Wire


Join = Callable[[Recorder], Joined]


class UplinkContract:
    """Inherit, and give a fixture `join`."""

    async def test_a_registration_arrives_and_is_answered(self, join: Join) -> None:
        control = Recorder()
        registration = Registration(name="one", facts=FACTS, known_node_id="node_1", known_epoch=2)
        assert await join(control).node.register(registration) == ASSIGNMENTS
        [arrived] = control.got
        assert isinstance(arrived, Registration)
        assert replace(arrived, joined=False) == registration

    async def test_assignments_arrive_as_they_were_given(self, join: Join) -> None:
        control = Recorder()
        assert await join(control).node.assignments("node_1") == ASSIGNMENTS
        assert control.got == ["node_1"]

    async def test_a_report_arrives_as_it_was_given(self, join: Join) -> None:
        control = Recorder()
        assert await join(control).node.report(REPORT) == 3
        assert control.got == [REPORT]

    async def test_what_opens_backups_arrives_and_is_as_hard_to_show_as_before(self, join: Join) -> None:
        control = Recorder()
        answer = await join(control).node.backup_access(BACKUP_REQUEST)
        assert control.got == [BACKUP_REQUEST]
        assert answer == BACKUP_ACCESS
        assert "pässword" not in repr(answer)

    async def test_names_arrive_as_they_were_given(self, join: Join) -> None:
        control = Recorder()
        assert await join(control).node.names("node_1") == NAMES
        assert control.got == ["node_1"]

    async def test_published_ports_arrive_as_they_were_given(self, join: Join) -> None:
        control = Recorder()
        assert await join(control).node.ports("node_1") == PORTS
        assert control.got == ["node_1"]

    async def test_secrets_arrive_and_are_as_hard_to_show_as_before(self, join: Join) -> None:
        control = Recorder()
        answer = await join(control).node.secrets(SECRETS_REQUEST)
        assert control.got == [SECRETS_REQUEST]
        assert answer == SECRETS
        assert "word" not in repr(answer)

    async def test_a_volumes_key_arrives_and_is_as_hard_to_show_as_before(self, join: Join) -> None:
        control = Recorder()
        answer = await join(control).node.volume_key(KEY_REQUEST)
        assert control.got == [KEY_REQUEST]
        assert answer == KEY
        assert repr(answer) == "VolumeKey(key=(hidden))"

    async def test_an_edge_registers_fetches_and_reports(self, join: Join) -> None:
        control = Recorder()
        edge = join(control).edge
        assert await edge.register_edge("front") == "edg_1"
        assert await edge.routes("edg_1", 8) == ROUTES
        assert await edge.routes("edg_1", 9) is None
        await edge.report_edge(EDGE_REPORT)
        assert control.got == ["front", ("edg_1", 8), ("edg_1", 9), EDGE_REPORT]

    async def test_neither_side_can_change_what_the_other_holds(self, join: Join) -> None:
        control = Recorder()
        instances = dict(REPORT.instances)
        await join(control).node.report(replace(REPORT, instances=instances))
        instances.clear()
        assert control.got == [REPORT]

    async def test_a_message_of_the_wrong_type_does_not_pass(self, join: Join) -> None:
        control = Recorder()
        wrong: Any = replace(REPORT, sequence="many")  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            await join(control).node.report(wrong)
        assert control.got == []

    async def test_a_refusal_reaches_the_caller_with_its_words(self, join: Join) -> None:
        refusal = ForbiddenError("node-not-known", "node node_1 is not known", resolution="Join it again.")
        with pytest.raises(ForbiddenError) as caught:
            await join(Recorder(refusal=refusal)).node.report(REPORT)
        told = caught.value
        assert (told.code, told.message, told.resolution) == (refusal.code, refusal.message, refusal.resolution)

    async def test_a_defect_of_the_control_plane_looks_like_its_absence(self, join: Join) -> None:
        joined = join(Recorder(refusal=LookupError("a defect with a secret")))
        with pytest.raises(UnavailableError) as caught:
            await joined.node.assignments("node_1")
        assert "secret" not in caught.value.message

    async def test_a_cut_wire_is_told_and_nothing_arrives(self, join: Join) -> None:
        control = Recorder()
        joined = join(control)
        joined.wire.cut()
        for call in (joined.node.report(REPORT), joined.edge.report_edge(EDGE_REPORT)):
            with pytest.raises(UnavailableError):
                await call
        assert control.got == []
        joined.wire.heal()
        assert await joined.node.report(REPORT) == 3

    async def test_a_lost_answer_is_told_though_the_call_was_done(self, join: Join) -> None:
        control = Recorder()
        joined = join(control)
        joined.wire.lose_answers()
        with pytest.raises(UnavailableError):
            await joined.node.report(REPORT)
        assert control.got == [REPORT]

    async def test_a_call_that_is_held_up_holds_up_no_other(self, join: Join) -> None:
        release = asyncio.Event()
        control = Recorder(holds_up=release)
        joined = join(control)
        held = asyncio.ensure_future(joined.node.report(REPORT))
        async with asyncio.timeout(5):
            await control.arrived.wait()
            control.holds_up = None
            await joined.edge.register_edge("front")
            assert not held.done()
            release.set()
            assert await held == 3
