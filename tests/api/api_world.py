"""The API on memory drivers and virtual time, called as ASGI without a socket.

Every answer is compared with the OpenAPI document: its status must be declared there, and its body fit the schema. So each
test of behaviour is a test against drift as well.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from fastapi import FastAPI

from shellwego.api.rest.app import create_app, openapi_document
from shellwego.control import backups
from shellwego.control.authentication import secret_hash
from shellwego.control.bootstrap import bootstrap
from shellwego.control.identity import make_identity
from shellwego.control.imagework import ImageWork
from shellwego.control.sealing import Sealer
from shellwego.control.throttling import Throttle
from shellwego.control.unit import Control, Unit
from shellwego.core.backups import DAY_S, Backup, BackupState
from shellwego.core.deployments import DeploymentState
from shellwego.core.images import ImageState
from shellwego.core.instances import Instance, Observed, Phase
from shellwego.core.nodes import Backend, Node, NodeFacts
from shellwego.core.replicas import Replica, ReplicaPurpose, ReplicaState
from shellwego.core.tenancy import Grant, Organization, Project, Token, TokenKind, User
from shellwego.core.volumes import ObservedSnapshot, ObservedVolume, Presence, Snapshot, SnapshotState, Volume
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.virtual import VirtualClock
from shellwego.drivers.images.memory import MemoryImages
from shellwego.drivers.kms.memory import MemoryKms
from shellwego.drivers.passwords.memory import MemoryHasher
from shellwego.drivers.store.memory import MemoryStore
from shellwego.drivers.store.rules import ENTITIES
from shellwego.drivers.streams.memory import MemoryStreams
from shellwego.ports.clock import Clock
from shellwego.ports.store import Store, eq

T = TypeVar("T")
GIB = 1 << 30
DOCUMENT = openapi_document()
ADMIN, OWNER, VIEWER, FOREIGN = (f"pat_{letter * 43}" for letter in "AOVF")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        return str(self.json["code"])


@dataclass
class World:
    """`token` speaks where a request names none: an owner of the first project."""

    app: FastAPI
    control: Control
    clock: Clock
    images: MemoryImages
    streams: MemoryStreams
    sealer: Sealer
    kms: MemoryKms
    project: Project
    foreign: Project
    node: Node
    token: str | None = OWNER
    statuses: set[tuple[str, int]] = field(default_factory=set)

    async def commit(self, fn: Callable[[Unit], T]) -> T:
        return await self.control.commit(fn)

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = "",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, object] | None = None,
        raw: bytes | None = None,
        client: str = "127.0.0.1",
    ) -> Answer:
        """One request, checked against the document. `raw` is a body as it is."""
        url = urlsplit(path)
        text = "&".join(filter(None, (url.query, urlencode(query or {}))))
        content = json.dumps(body).encode() if raw is None and body is not None else raw or b""
        speaker = self.token if token == "" else token
        sent = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
        if speaker:
            sent.setdefault("authorization", f"Bearer {speaker}")
        answer = await call_asgi(self.app, method, url.path, query=text, headers=sent, content=content, client=client)
        operation = operation_at(method, url.path)
        if operation is not None:
            self.statuses.add((operation["operationId"], answer.status))
            check_answer(operation, answer)
        return answer

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: object = None, **options: Any) -> Answer:
        return await self.call("POST", path, body, **options)

    async def made(self, path: str, body: object = None, **options: Any) -> Any:
        """The body of an answer to a POST that must succeed."""
        answer = await self.post(path, body, **options)
        assert answer.status in (200, 201, 202), answer.content
        return answer.json

    async def deployed(self, name: str = "shop", image: str = "registry.example/hello:v1") -> Any:
        """An app with one release whose image is there; returns the deployment."""
        self.images.publish(image)
        await self.made("/v1/apps", {"name": name})
        return await self.made(f"/v1/apps/{name}/deployments", {"image": image, "port": 8080})

    async def running(self, name: str = "shop", process: str = "web", phase: Phase = Phase.HEALTHY) -> Instance:
        """An instance of a deployed app, as if the loops and a node had worked; the deployment is over."""
        return await self.commit(lambda unit: run_instance(unit, name, process, phase, self.node.id))


async def make_world(
    spool_dir: Path, *, clock: Clock | None = None, store: Store | None = None, throttle: Throttle | None = None
) -> World:
    clock = clock or VirtualClock()
    control = Control(store or MemoryStore(clock), MemoryBus(), clock)
    images, streams, kms = MemoryImages(clock.now), MemoryStreams(), MemoryKms()
    sealer = Sealer(control, kms)
    first = await control.commit(lambda unit: bootstrap(unit, ADMIN))
    assert first is not None
    foreign = await control.commit(add_foreign)
    node = await control.commit(add_node)
    await control.commit(lambda unit: add_user(unit, "owner@x", "owner", first.project.id, OWNER))
    await control.commit(lambda unit: add_user(unit, "viewer@x", "viewer", first.project.id, VIEWER))
    app = create_app(
        control,
        images=ImageWork(images, clock),
        streams=streams,
        sealer=sealer,
        version="0",
        spool_dir=spool_dir,
        http_port=8080,
        identity=make_identity(control, MemoryHasher(), sealer, throttle),
        node_urls=("https://one.example:7081",),
        backups=True,
        publish=range(20_000, 30_000),
    )
    app.state.context.spool.open()
    return World(app, control, clock, images, streams, sealer, kms, first.project, foreign, node)


def add_foreign(unit: Unit) -> Project:
    """Another tenant, with an owner."""
    project = add_tenant(unit, "other", "free", project="theirs")
    add_user(unit, "foreign@x", "owner", project.organization_id, FOREIGN)
    return project


def add_tenant(unit: Unit, name: str, plan: str, *, project: str = "default") -> Project:
    """An organization that nobody is a member of, and its first project."""
    organization = Organization(id=unit.new_id("org"), name=name, plan=plan, created_at=unit.now())
    unit.tx.organizations.insert(organization)
    return unit.tx.projects.insert(
        Project(
            id=unit.new_id("prj"),
            organization_id=organization.id,
            name=project,
            network_id=unit.new_id("net"),
            first=True,
            created_at=unit.now(),
        )
    )


def add_user(unit: Unit, email: str, role: str, scope_id: str, secret: str) -> Token:
    user = unit.tx.users.insert(User(id=unit.new_id("usr"), email=email, created_at=unit.now()))
    grant = Grant(id=unit.new_id("grn"), principal_id=user.id, role=role, scope_id=scope_id, created_at=unit.now())
    unit.tx.grants.insert(grant)
    return unit.tx.tokens.insert(
        Token(
            id=unit.new_id("tok"),
            kind=TokenKind.PERSONAL,
            principal_id=user.id,
            name="test",
            secret_hash=secret_hash(secret),
            scopes=(),
            created_at=unit.now(),
            expires_at=unit.now() + 1e6,
        )
    )


def withdraw_grants(unit: Unit, principal_id: str) -> None:
    """Whoever it is keeps his tokens."""
    for grant in unit.tx.grants.select(eq("principal_id", principal_id)):
        unit.tx.grants.delete(grant.id)


def add_node(unit: Unit) -> Node:
    facts = NodeFacts(
        hostname="host",
        version="1",
        cpu_milli=8000,
        memory_bytes=8 * GIB,
        disk_bytes=100 * GIB,
        backends=(Backend(name="kvm", status="ready", suspend=True, volumes=True, encryption=True, fences=True),),
        replicas=True,
    )
    node = Node(id=unit.new_id("node"), name="one", facts=facts, last_heard_at=unit.now(), created_at=unit.now())
    return unit.tx.nodes.insert(node)


async def census(world: World) -> Any:
    """All that a refused request could have changed."""
    unwatched = {"audit", "counters", "idempotency", "token_uses"}
    return await world.control.read(
        lambda tx: {name: getattr(tx, name).select() for name in ENTITIES if name not in unwatched}
    )


def run_instance(unit: Unit, name: str, process: str, phase: Phase, node_id: str) -> Instance:
    app = unit.tx.apps.select(eq("name", name), limit=1)[0]
    for image in unit.tx.images.select(eq("project_id", app.project_id)):
        if image.state is not ImageState.READY:
            unit.tx.images.update(replace(image, state=ImageState.READY))
    for deployment in unit.tx.deployments.select(eq("app_id", app.id)):
        done = replace(deployment, state=DeploymentState.SUCCEEDED, finished_at=unit.now())
        unit.tx.deployments.update(done)
    release = max(unit.tx.releases.select(eq("app_id", app.id)), key=lambda r: r.number)
    unit.tx.apps.update(replace(app, release_id=release.id, stable_release_id=release.id))
    size = release.config.processes[0]
    return unit.tx.instances.insert(
        Instance(
            id=unit.new_id("ins"),
            app_id=app.id,
            process=process,
            slot=0,
            release_id=release.id,
            content_hash=release.content_hash,
            generation=app.generation,
            memory_bytes=size.memory_bytes,
            cpu_milli=size.cpu_milli,
            disk_bytes=size.disk_bytes,
            node_id=node_id,
            phase=phase,
            observed=Observed(phase=phase, attempt=1, vm_id=unit.new_id("vm"), address="10.64.0.5"),
            created_at=unit.now(),
            phase_since=unit.now(),
        )
    )


def keep_volume(unit: Unit, project_id: str, name: str, node_id: str) -> Snapshot:
    """A volume that its node has, with a snapshot of it."""
    volume_id, snapshot_id, size = unit.new_id("vol"), unit.new_id("snap"), 1 << 30
    kept = ObservedSnapshot(presence=Presence.PRESENT)
    seen = ObservedVolume(presence=Presence.PRESENT, size_bytes=size, snapshots={snapshot_id: kept})
    made = {"created_at": unit.now(), "created_by": "me", "project_id": project_id, "size_bytes": size}
    unit.tx.volumes.insert(Volume(id=volume_id, name=name, node_id=node_id, made=True, observed=seen, **made))
    state = SnapshotState.AVAILABLE
    return unit.tx.snapshots.insert(Snapshot(id=snapshot_id, volume_id=volume_id, state=state, **made))


def leave_copy(unit: Unit, volume_id: str) -> Replica:
    """What was a volume before its standby became that, on a node that was lost."""
    volume = unit.tx.volumes.get(volume_id)
    assert volume is not None
    return unit.tx.replicas.insert(
        Replica(
            id=unit.new_id("rep"),
            volume_id=volume.id,
            project_id=volume.project_id,
            node_id="node_lost",
            purpose=ReplicaPurpose.LEFT,
            size_bytes=volume.size_bytes,
            asked_at=unit.now(),
            state=ReplicaState.LEFT,
            created_at=unit.now(),
            created_by="me",
        )
    )


def keep_backup(unit: Unit, volume_id: str) -> Backup:
    """A backup of a volume that is in the repository, and a policy by which there will be more."""
    volume = unit.tx.volumes.get(volume_id)
    assert volume is not None
    backups.set_policy(unit, volume, backups.PolicyWish(every_s=DAY_S, daily=7, weekly=4, monthly=12))
    kept = backups.add_backup(unit, volume)
    there = replace(kept, state=BackupState.AVAILABLE, node_id=volume.node_id, digest="0" * 64, ended_at=unit.now())
    return unit.tx.backups.update(there)


def http_scope(
    target: str, headers: Mapping[str, str], *, method: str = "GET", client: str = "127.0.0.1", spec: str = "2.3"
) -> dict[str, Any]:
    """A request as a server tells an application of it (ASGI, HTTP connection scope). From `spec` 2.4 on what is sent to who
    has left raises `OSError`."""
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": (client, 1),
        "server": ("127.0.0.1", 2),
    }


async def call_asgi(
    app: FastAPI,
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Mapping[str, str],
    content: bytes = b"",
    client: str = "127.0.0.1",
) -> Answer:
    """Call the application as a server would, to the end of its answer."""
    chunks = [content[start : start + 65536] for start in range(0, len(content), 65536)] or [b""]
    sent: list[MutableMapping[str, Any]] = []
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if chunks:
            chunk = chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = http_scope(f"{path}?{query}", headers, method=method, client=client)
    await app(scope, receive, send)
    start = sent[0]
    answered = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))


def operation_at(method: str, path: str) -> Any:
    """The operation of the document that a path belongs to, if any; a fixed part wins over a parameter."""
    parts = path.split("/")
    best = None
    for template, operations in DOCUMENT["paths"].items():
        wanted = template.split("/")
        if len(wanted) == len(parts) and all(w == p or w.startswith("{") for w, p in zip(wanted, parts, strict=True)):
            operation = operations.get(method.lower())
            fixed = sum(not part.startswith("{") for part in wanted)
            if operation is not None and (best is None or fixed > best[0]):
                best = (fixed, operation)
    return best[1] if best else None


def check_answer(operation: Any, answer: Answer) -> None:
    """The status is declared, and the body is what the document says."""
    name = f"{operation['operationId']} → {answer.status}"
    assert str(answer.status) in operation["responses"], f"{name} is not declared: {answer.content[:300]!r}"
    declared = operation["responses"][str(answer.status)].get("content", {})
    if not declared:
        assert answer.content == b"", f"{name} should have no body"
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    assert media_type in declared, f"{name} is {media_type}, declared are {list(declared)}"
    if media_type.endswith(("/json", "+json")):
        check_value(answer.json, declared[media_type]["schema"], name)


_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def check_value(value: Any, schema: Mapping[str, Any], at: str) -> None:
    """Compare a value with a schema, in the part of JSON Schema that the document uses."""
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        faults = [fault for each in schema["anyOf"] if (fault := _fault(value, each, at))]
        assert len(faults) < len(schema["anyOf"]), faults
        return
    if "type" not in schema:
        return
    kinds = _TYPES[schema["type"]]
    typed = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    assert typed, f"{at}: {value!r} is no {kinds}"
    if isinstance(value, list):
        for number, item in enumerate(value):
            check_value(item, schema["items"], f"{at}[{number}]")
    elif isinstance(value, dict):
        _check_object(value, schema, at)


def _check_object(value: dict[str, Any], schema: Mapping[str, Any], at: str) -> None:
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
    missing = set(schema.get("required", ())) - value.keys()
    assert not missing, f"{at} lacks {missing}"
    for name, item in value.items():
        assert name in properties or extra is not False, f"{at} has an undeclared {name}"
        if name in properties:
            check_value(item, properties[name], f"{at}.{name}")
        elif isinstance(extra, dict):
            check_value(item, extra, f"{at}.{name}")


def _fault(value: Any, schema: Mapping[str, Any], at: str) -> str:
    try:
        check_value(value, schema, at)
    except AssertionError as error:
        return str(error)
    return ""
