"""Who may call what: every method of the schema × who asks, through the platform's own choke point."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from plasmavmc.errors import CapacityError, ForbiddenError, NotFoundError, UnauthenticatedError
from plasmavmc.guest.api import ExecOutput
from plasmavmc.rpc.access import Action
from plasmavmc.rpc.actions import ACTIONS
from plasmavmc.rpc.api import ImageOrder, ImageProgress, VmFilter
from plasmavmc.rpc.client import connect
from plasmavmc.types import ExecSpec, LogStream, VmSpec
from plasmavmc.types import Scope as EngineScope
from shellwego.api.grpc.permissions import PERMISSIONS, check_permissions
from shellwego.control import rights
from shellwego.control.authentication import new_secret
from shellwego.core.iam import ROLES
from shellwego.core.instances import Desired
from shellwego.core.nodes import Scheduling
from shellwego.core.tenancy import TokenKind
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.memory import MemoryStore
from tests.api.api_world import ADMIN, FOREIGN, OWNER, VIEWER, add_user, make_world, withdraw_grants
from tests.api_grpc.grpc_world import WITHIN_S, GrpcWorld, refusal, running, served
from tests.control.away_store import AwayStore
from tests.rpc.test_rpc_foreign import METHODS, Heard
from tests.waiting import until

VMS = sorted(path for path, action in ACTIONS.items() if action.value.startswith("vm:"))
ON_A_VM = [path for path in VMS if not path.endswith(("CreateVm", "ListVms", "WatchVms"))]
NODES = sorted(path for path, action in ACTIONS.items() if action.value.startswith("node:"))
GONE = f"ins_{'0' * 26}"


async def heard(world: GrpcWorld, path: str, request: Message, token: str) -> Heard:
    """The first answer to a request."""
    method = METHODS[path]
    kind = "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
    decode = GetMessageClass(method.output_type).FromString
    async with grpc.aio.insecure_channel(world.address) as channel:
        remote = getattr(channel, kind)(
            path, request_serializer=lambda each: each.SerializeToString(), response_deserializer=decode
        )
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            if not method.server_streaming:
                return Heard("OK", answer=await remote(request, metadata=metadata))
            stream = remote(metadata=metadata) if method.client_streaming else remote(request, metadata=metadata)
            if method.client_streaming:
                await stream.write(request)
            answer = await stream.read()
            stream.cancel()
            return Heard("OK", answer=None if answer is grpc.aio.EOF else answer)
        except grpc.aio.AioRpcError as error:
            return Heard(error.code().name, str(error.details()))


def aimed(path: str, vm_id: str, *, scope: tuple[str, str] = ("", "")) -> Any:
    """A request that names a VM, or what else it must name."""
    request: Any = GetMessageClass(METHODS[path].input_type)()
    part = request.start if "start" in {f.name for f in request.DESCRIPTOR.fields if f.message_type} else request
    names = {field.name for field in part.DESCRIPTOR.fields}
    if "vm_id" in names:
        part.vm_id = vm_id
    if "command" in names:
        part.command.append("true")
    if "deadline_seconds" in names:
        part.deadline_seconds = 1
    if "copies" in names:
        part.copies.add()
    if "reference" in names:
        part.reference = "registry.example/hello:v1"
    if "image" in names:
        part.image = "registry.example/hello:v1"
    if "scope" in names:
        part.scope.org, part.scope.project = scope
    if "spec" in names:
        part.spec.image = "registry.example/hello:v1"
        part.spec.labels["app"] = "shop"
        part.spec.scope.org, part.spec.scope.project = scope
        part.start = True
    return request


def test_an_action_without_a_permission_stops_the_start_and_each_permission_is_in_a_role() -> None:
    for action in Action:
        with pytest.raises(LookupError, match=action.value):
            check_permissions({known: name for known, name in PERMISSIONS.items() if known is not action})
    assert {PERMISSIONS[action] for action in ACTIONS.values()} == set(PERMISSIONS.values())
    for permission in PERMISSIONS.values():
        resource, _, verb = permission.partition(":")
        assert any(
            {permission, f"{resource}:*", f"*:{verb}"} & ROLES[role] for role in ("admin", "developer", "viewer")
        )


@pytest.mark.parametrize("path", sorted(METHODS))
async def test_nobody_gets_through_without_a_token_that_holds(world: GrpcWorld, path: str) -> None:
    async with grpc.aio.insecure_channel(world.address) as channel:
        for metadata in (None, *((("authorization", f"Bearer {token}"),) for token in ("nonsense", f"pat_{'x' * 43}"))):
            assert await refusal(channel, METHODS[path], metadata) == "UNAUTHENTICATED"


@pytest.mark.parametrize("path", ON_A_VM)
async def test_what_is_foreign_looks_absent_and_the_refusal_is_audited(world: GrpcWorld, path: str) -> None:
    instance = await world.deployed()
    foreign = await heard(world, path, aimed(path, instance.id), FOREIGN)
    absent = await heard(world, path, aimed(path, GONE), FOREIGN)
    assert (foreign.code, foreign.words.replace(instance.id, GONE)) == (absent.code, absent.words)
    if not path.endswith("DeleteVm"):
        assert foreign.code == "NOT_FOUND"
    assert await world.api.control.read(lambda tx: tx.instances.get(instance.id)) == instance
    records = await world.api.control.read(lambda tx: tx.audit.select())
    refused = [(record.action, record.resource) for record in records if not record.allowed]
    assert refused == [(PERMISSIONS[ACTIONS[path]], instance.id)]


@pytest.mark.parametrize("path", [*ON_A_VM, "/plasmavmc.v1.VmService/CreateVm"])
async def test_a_viewer_sees_and_changes_nothing(world: GrpcWorld, path: str) -> None:
    instance = await world.deployed()
    scope = (world.api.project.organization_id, world.api.project.id)
    told = await heard(world, path, aimed(path, instance.id, scope=scope), VIEWER)
    assert (told.code == "PERMISSION_DENIED") == (PERMISSIONS[ACTIONS[path]] not in ROLES["viewer"]), told
    assert await world.api.control.read(lambda tx: tx.instances.select()) == [instance]


@pytest.mark.parametrize("path", NODES)
async def test_nodes_are_the_platforms(world: GrpcWorld, path: str) -> None:
    request = aimed(path, "")
    told = await heard(world, path, request, OWNER)
    assert told.code == "NOT_FOUND" or (told.code, str(told.answer)) == ("OK", ""), told
    assert (await heard(world, path, request, ADMIN)).code in ("OK", "FAILED_PRECONDITION")


async def test_another_organizations_name_before_ones_own_project_opens_nothing(world: GrpcWorld) -> None:
    """A grant on an organization holds for its own projects, whatever a request says a project belongs to."""
    await world.deployed()
    mixed = (world.api.foreign.organization_id, world.api.project.id)
    for path in ("VmService/CreateVm", "ImageService/GetImage", "ImageService/DeleteImage"):
        told = await heard(world, f"/plasmavmc.v1.{path}", aimed(f"/plasmavmc.v1.{path}", "", scope=mixed), FOREIGN)
        assert told.code == "NOT_FOUND", (path, told)
    assert len(await world.api.control.read(lambda tx: tx.instances.select())) == 1


async def test_lists_and_watches_hold_what_the_caller_may_see(world: GrpcWorld) -> None:
    instance = await world.deployed()
    for token, seen in ((OWNER, [instance.id]), (VIEWER, [instance.id]), (ADMIN, [instance.id]), (FOREIGN, [])):
        async with world.client(token) as client:
            assert [vm.spec.id async for vm in client.vms.list_vms()] == seen
            assert len([image async for image in client.images.list_images()]) == len(seen)
            told = []
            async for event in client.vms.watch():
                if event.snapshot_complete:
                    break
                told += [event.vm.spec.id] if event.vm else []
            assert told == seen
    async with world.client(FOREIGN) as client:
        chosen = VmFilter(labels={"app": "shop"})
        assert [vm async for vm in client.vms.list_vms(chosen)] == []


async def test_allowed_writes_are_audited(world: GrpcWorld) -> None:
    instance = await world.deployed()
    async with world.client() as client:
        session = await client.vms.exec(instance.id, ExecSpec(command=("true",)))
        await session.send_eof()
        assert [item async for item in session.output()]
    records = await world.api.control.read(lambda tx: tx.audit.select())
    assert [(r.action, r.allowed) for r in records if r.resource == instance.id] == [("instances:exec", True)]


async def test_a_watch_ends_with_its_token(world: GrpcWorld) -> None:
    token = f"pat_{'W' * 43}"
    made = await world.api.commit(lambda unit: add_user(unit, "w@x", "viewer", world.api.project.id, token))
    async with world.client(token) as client:
        events = client.vms.watch()
        assert (await anext(events)).snapshot_begin
        assert (await anext(events)).snapshot_complete
        await world.api.commit(lambda unit: unit.tx.tokens.update(replace(made, revoked_at=unit.now())))
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(UnauthenticatedError):
                await anext(events)
        with pytest.raises(UnauthenticatedError):
            await client.vms.get(GONE)


async def test_a_session_ends_with_the_grant_by_which_it_was_let_in(world: GrpcWorld) -> None:
    instance = await world.deployed()
    token = f"pat_{'G' * 43}"
    made = await world.api.commit(lambda unit: add_user(unit, "g@x", "developer", world.api.project.id, token))
    async with world.client(token) as client:
        output = (await client.vms.exec(instance.id, ExecSpec(command=("cat",)))).output()
        await world.api.commit(lambda unit: withdraw_grants(unit, made.principal_id))
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(NotFoundError):
                await anext(output)


async def test_a_session_outlasts_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "CHECK_S", 0.02)
    clock = SystemClock()
    store = AwayStore(MemoryStore(clock))
    async with running(tmp_path / "spool", clock, store) as world:
        instance = await world.deployed()
        async with world.client() as client:
            session = await client.vms.exec(instance.id, ExecSpec(command=("cat",)))
            output = session.output()
            store.away = True
            await until(lambda: _unanswered(store), "the right was asked for in vain")
            store.away = False
            await session.send(b"x")
            assert await anext(output) == ExecOutput(LogStream.STDOUT, b"X")


async def _unanswered(store: AwayStore) -> bool:
    return store.unanswered >= 3


async def test_a_call_that_waits_ends_with_its_token(world: GrpcWorld) -> None:
    await world.deployed()
    token = f"pat_{'H' * 43}"
    made = await world.api.commit(lambda unit: add_user(unit, "h@x", "developer", world.api.project.id, token))
    scope = EngineScope(world.api.project.organization_id, world.api.project.id)
    spec = VmSpec("", scope, "", "registry.example/hello:v1", command=("true",), labels={"app": "shop"})
    async with world.client(token) as client:
        run = await world.place((await client.vms.create(spec, start=True)).spec.id)
        stopping = asyncio.create_task(client.vms.stop(run.id))
        await until(lambda: _is_to_stop(world, run.id), "the run is to stop")
        await world.api.commit(lambda unit: unit.tx.tokens.update(replace(made, revoked_at=unit.now())))
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(UnauthenticatedError):
                await stopping


async def test_who_waits_for_an_image_is_told_no_more_of_it_than_he_may_see(tmp_path: Path) -> None:
    api = await make_world(tmp_path / "spool", clock=SystemClock())  # where nobody fetches images
    api.images.publish("registry.example/slow:v1")
    token = f"pat_{'I' * 43}"
    made = await api.commit(lambda unit: add_user(unit, "i@x", "developer", api.project.id, token))
    async with served(api) as (_, address), connect(address, token=token) as client:
        order = ImageOrder(EngineScope(api.project.organization_id, api.project.id), "registry.example/slow:v1")
        progress = client.images.register(order)
        assert isinstance(await anext(progress), ImageProgress)
        await api.commit(lambda unit: withdraw_grants(unit, made.principal_id))
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(NotFoundError):
                await anext(progress)


async def _is_to_stop(world: GrpcWorld, run_id: str) -> bool:
    row = await world.api.control.read(lambda tx: tx.instances.get(run_id))
    return row is not None and row.desired is Desired.STOP


async def test_a_drain_that_waits_ends_with_the_grant_by_which_it_was_asked_for(world: GrpcWorld) -> None:
    await world.deployed()
    token = f"pat_{'D' * 43}"
    made = await world.api.commit(lambda unit: add_user(unit, "d@x", "owner", "", token))
    async with world.client(token) as client:
        draining = asyncio.create_task(client.nodes.drain(world.api.node.id, deadline_s=600))
        await until(lambda: _drains(world), "the node is drained")
        await world.api.commit(lambda unit: withdraw_grants(unit, made.principal_id))
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(NotFoundError):
                await draining


async def _drains(world: GrpcWorld) -> bool:
    node = await world.api.control.read(lambda tx: tx.nodes.get(world.api.node.id))
    return node is not None and node.scheduling is Scheduling.DRAINING


async def test_calls_count_against_the_rate_of_the_plan(world: GrpcWorld) -> None:
    async with world.client(FOREIGN) as client:
        with pytest.raises(CapacityError, match="used up"):  # noqa: PT012 - the plan's burst is 20
            for _ in range(60):
                with pytest.raises(NotFoundError):
                    await client.vms.get(GONE)


async def narrowed(world: GrpcWorld, resource: str) -> str:
    wish = {"name": "narrow", "resources": [resource]}
    return str((await world.api.made("/v1/user/tokens", wish, token=ADMIN))["secret"])


async def test_a_token_narrowed_to_a_project_or_an_app_stays_in_it(world: GrpcWorld) -> None:
    instance = await world.deployed()
    other = await world.deployed("other")
    path = next(each for each in VMS if each.endswith("GetVm"))
    seen = {world.api.project.id: {instance.id, other.id}, world.api.foreign.id: set(), instance.app_id: {instance.id}}
    for resource, reached in seen.items():
        token = await narrowed(world, resource)
        for vm_id in (instance.id, other.id):
            told = await heard(world, path, aimed(path, vm_id), token)
            assert told.code == ("OK" if vm_id in reached else "NOT_FOUND"), (resource, vm_id)
        async with world.client(token) as client:
            assert {vm.spec.id async for vm in client.vms.list_vms()} == reached
            assert [node async for node in client.nodes.list_nodes()] == []


async def granted(world: GrpcWorld, role: str, scope_id: str) -> str:
    """A token of somebody with one role on one scope."""
    token = new_secret(TokenKind.PERSONAL)
    await world.api.commit(lambda unit: add_user(unit, f"{role}@{scope_id}", role, scope_id, token))
    return token


@pytest.mark.parametrize("path", ON_A_VM)
async def test_a_role_on_an_app_holds_for_its_vms_as_on_the_rest_api_and_for_no_other(
    world: GrpcWorld, path: str
) -> None:
    instance, other = await world.deployed(), await world.deployed("other")
    viewer = await granted(world, "viewer", instance.app_id)
    told = await heard(world, path, aimed(path, instance.id), viewer)
    allowed = PERMISSIONS[ACTIONS[path]] in ROLES["viewer"]
    assert (told.code == "PERMISSION_DENIED") == (not allowed), told
    developer = await granted(world, "developer", instance.app_id)
    beside = await heard(world, path, aimed(path, other.id), developer)
    absent = await heard(world, path, aimed(path, GONE), developer)
    assert (beside.code, beside.words.replace(other.id, GONE)) == (absent.code, absent.words)
    assert await world.api.control.read(lambda tx: tx.instances.get(other.id)) == other


async def test_whoever_has_a_role_on_an_app_lists_watches_enters_and_makes_vms_of_it_alone(world: GrpcWorld) -> None:
    instance, other = await world.deployed(), await world.deployed("other")
    scope = EngineScope(world.api.project.organization_id, world.api.project.id)
    order = VmSpec("", scope, "", "registry.example/hello:v1", command=("true",), labels={"app": "shop"})
    async with world.client(await granted(world, "developer", instance.app_id)) as client:
        assert [vm.spec.id async for vm in client.vms.list_vms()] == [instance.id]
        chosen = VmFilter(labels={"app_id": other.app_id})
        assert [vm async for vm in client.vms.list_vms(chosen)] == []
        session = await client.vms.exec(instance.id, ExecSpec(command=("true",)))
        await session.send_eof()
        assert [item async for item in session.output()]
        made = {instance.id}
        for app in ("shop", instance.app_id):
            made.add((await client.vms.create(replace(order, labels={"app": app}), start=True)).spec.id)
        for app in ("other", other.app_id, "none"):
            with pytest.raises(NotFoundError):
                await client.vms.create(replace(order, labels={"app": app}), start=True)
        told = set()
        async for event in client.vms.watch():
            if event.snapshot_complete:
                break
            told |= {event.vm.spec.id} if event.vm else set()
        assert told == made
        assert [image async for image in client.images.list_images()] == []
    async with world.client(await granted(world, "viewer", instance.app_id)) as client:
        with pytest.raises(ForbiddenError):
            await client.vms.create(order, start=True)


async def test_an_app_of_ones_own_opens_no_project_that_is_named_beside_it(world: GrpcWorld) -> None:
    instance = await world.deployed()
    await world.api.made("/v1/apps", {"name": "theirs"}, token=FOREIGN, query={"project": world.api.foreign.id})
    developer = await granted(world, "developer", instance.app_id)
    path = "/plasmavmc.v1.VmService/CreateVm"
    foreign = (world.api.foreign.organization_id, world.api.foreign.id)
    mixed = (world.api.foreign.organization_id, world.api.project.id)
    for scope in (foreign, mixed):
        for app in ("shop", "theirs", instance.app_id):
            request = aimed(path, "", scope=scope)
            request.spec.labels["app"] = app
            assert (await heard(world, path, request, developer)).code == "NOT_FOUND", (scope, app)
    assert len(await world.api.control.read(lambda tx: tx.instances.select())) == 1
