"""The authorization matrix: who asks, what there is in each of two organizations, and what an answer must be.

All of it follows from the OpenAPI document and from `core.iam`: a new operation is asked by everybody as soon as it is
there. What cannot be known (how to make a thing that a path names, what a body needs) stands in the tables below, and an
operation that needs what is missing there fails with the name of what to add.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shellwego.control import grants, invitations, joins, nodeauthority, roles, serviceaccounts
from shellwego.control.authentication import new_secret
from shellwego.control.nodeauthority import Fresh, NodeAuthorities
from shellwego.control.tokens import TokenWish
from shellwego.control.unit import Unit
from shellwego.core import iam
from shellwego.core.envelope import MasterKey
from shellwego.core.instances import Phase
from shellwego.core.joins import MemberKind, NodeKey
from shellwego.core.tenancy import Grant, Principal, Project, TokenKind
from tests.api import api_bodies
from tests.api.api_world import (
    ADMIN,
    DOCUMENT,
    Answer,
    World,
    add_user,
    keep_backup,
    keep_volume,
    leave_copy,
    make_world,
    run_instance,
)

Things = Mapping[str, str]
"""What lies in one organization, by the name by which paths, queries and bodies mean it."""
SYSTEM, ORGANIZATION, PROJECT, APP = range(4)
_ports = itertools.count(20_000)
"""No two tenants have the same."""
_PAINTED = ("instance", "trace_id")
"""What of an answer is about the request."""


@dataclass(frozen=True)
class Operation:
    """One operation of the document."""

    method: str
    path: str
    spec: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.spec["operationId"])

    @property
    def permission(self) -> str:
        return str(self.spec["x-permission"])

    @property
    def streams(self) -> bool:
        contents = [answer.get("content", {}).keys() for answer in self.spec["responses"].values()]
        return any("text/event-stream" in each and "application/json" not in each for each in contents)

    def parameters(self, place: str) -> dict[str, Any]:
        return {each["name"]: each for each in self.spec.get("parameters", []) if each["in"] == place}

    @property
    def body_fields(self) -> frozenset[str]:
        """The fields of its body, at the first level."""
        content = self.spec.get("requestBody", {}).get("content", {}).get("application/json", {})
        reference = str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
        return frozenset(DOCUMENT["components"]["schemas"].get(reference, {}).get("properties", ()))

    @property
    def level(self) -> int:
        """Where lies what the operation is about."""
        if self.name in PLATFORM:
            return SYSTEM
        if "{organization}" in self.path or self.name in OF_ORGANIZATIONS:
            return ORGANIZATION
        return APP if re.search(r"\{(app|instance)\}", self.path) else PROJECT

    @property
    def shows(self) -> tuple[str, ...]:
        """Permissions by which a caller knows that there is what the operation is about; one who holds none of them is told
        that there is none."""
        own = (
            ()
            if self.level == APP or TARGETS.intersection(re.findall(r"\{(\w+)\}", self.path))
            else _ITSELF[self.level]
        )
        return (iam.read_permission(self.permission), *own)


TARGETS = frozenset(
    {"authority", "grant", "group", "image", "join_token", "node", "node_key", "secret", "user", "volume", "webhook"}
)
"""Things that are looked up by themselves, and not within what the path or query names first."""
_ITSELF: Mapping[int, tuple[str, ...]] = {
    SYSTEM: (),
    ORGANIZATION: ("organizations:read",),
    PROJECT: ("projects:read",),
}
OPERATIONS = [
    Operation(method.upper(), path, spec)
    for path, operations in DOCUMENT["paths"].items()
    for method, spec in operations.items()
]
GUARDED = [each for each in OPERATIONS if each.permission != "public"]

OWN = frozenset(
    {
        *("get_user", "update_user", "set_password", "enrol_totp", "confirm_totp", "disable_totp"),
        *("list_tokens", "create_token", "revoke_token", "sign_out", "accept_invitation"),
        *("list_projects", "list_organizations", "capabilities"),
    }
)
"""Operations about the caller himself: everybody may, a token's scopes aside."""
PLATFORM = frozenset(
    {
        *("metrics", "list_nodes", "get_node", "cordon_node", "uncordon_node", "drain_node"),
        *("update_node", "remove_node", "get_rebalance", "begin_rebalance", "cancel_rebalance"),
        "rotate_node_keys",
        "create_organization",
        *("list_users", "get_user_of_platform", "update_user_of_platform"),
        *("list_master_keys", "rotate_master_key", "retire_master_key"),
        *("create_join_token", "list_join_tokens", "revoke_join_token", "list_node_keys", "revoke_node_key"),
        *("list_node_authorities", "rotate_node_authority", "retire_node_authority"),
    }
)
"""Operations about the platform, which no organization's owner may."""
OF_ORGANIZATIONS = frozenset({"create_project"})
"""Operations about an organization that their path does not name."""
BODIES: Mapping[str, Any] = (
    api_bodies.BODIES
    | api_bodies.OF_ACCESS
    | {
        "create_app": {"name": "fresh"},
        "exec_command": {"command": ["true"], "instance": "{instance}"},
        "rollback_app": {"release": "{release}"},
        "create_project": {"name": "fresh", "organization": "{organization}"},
        "change_member": {"role": "{role}"},
        "create_grant": {"scope": "{project}", "principal": "{member}", "role": "{role}"},
        "change_grant": {"role": "{role}"},
        "create_volume": {"name": "fresh", "snapshot": "{snapshot}"},
        "attach_volume": {"app": "{app}", "destination": "/data"},
        "attach_group": {"app": "{app}"},
        "detach_group": {"app": "{app}"},
        "move_volume": {"node": "{node}"},
        "replicate_volume": {"every_s": 60, "node": "{node}"},
        "restore_volume": {"snapshot": "{snapshot}"},
        "restore_backup": {"to": "again"},
        "create_invitation": {"email": "ann@x", "role": "{role}"},
    }
)
"""A body that makes sense, for each operation that needs one; `{name}` is the thing of that name."""
QUERIES: Mapping[str, str] = {
    "project": "{project}",
    "organization": "{organization}",
    "scope": "{project}",
    "filter[principal]": "{member}",
    "timeout": "0",
    "against": "{release}",
    "digest": f"sha256:{'0' * 64}",
}
"""Query parameters that are given wherever an operation has them."""
NUMBERS: Mapping[str, str] = {"number": "1"}
"""What a path names besides things."""
RAW: Mapping[str, bytes] = {"append_upload": b"x"}
_HEADERS = {"Content-Range": "bytes 0-0/*"}
_UNNAMED = frozenset({"image", "invitation", "port"})
"""Fields of bodies that sound like a thing's id and are none: the reference of a registry, the secret of an invitation, and
the number of a port."""


async def seed(world: World, project: Project, token: str, prefix: str) -> dict[str, str]:
    """One of each thing in a project and its organization."""
    name = f"{prefix}-shop"
    query = {"project": project.id}
    world.images.publish("registry.example/hello:v1")
    app = await world.made("/v1/apps", {"name": name}, query=query, token=token)
    body = {"image": "registry.example/hello:v1", "port": 8080}
    deployment = await world.made(f"/v1/apps/{app['id']}/deployments", body, token=token)
    instance = await world.commit(lambda unit: run_instance(unit, name, "web", Phase.HEALTHY, world.node.id))
    upload = await world.made("/v1/images/uploads", query=query, token=token)
    images = (await world.get("/v1/images", query=query, token=token)).json["data"]
    made = await world.commit(lambda unit: _seed_access(unit, project, prefix))
    fresh = await NodeAuthorities(world.control, world.sealer).prepare()
    joined = await world.commit(lambda unit: _seed_join(unit, prefix, fresh))
    secret = await world.made("/v1/secrets", {"name": "DB_URL", "value": "x"}, query=query, token=token)
    kept = await world.commit(lambda unit: keep_volume(unit, project.id, f"{prefix}-data", world.node.id))
    backup = await world.commit(lambda unit: keep_backup(unit, kept.volume_id))
    left = await world.commit(lambda unit: leave_copy(unit, kept.volume_id))
    webhook = await world.made("/v1/webhooks", {"url": "https://hooks.example/"}, query=query, token=token)
    port = await world.made(f"/v1/apps/{app['id']}/ports", {"port": next(_ports)}, token=token)
    group = await world.made("/v1/security-groups", {"name": "inner"}, query=query, token=token)
    delivery = await world.made(f"/v1/webhooks/{webhook['id']}/actions/test", token=token)
    return {
        "organization": project.organization_id,
        "project": project.id,
        "app": app["id"],
        "deployment": deployment["id"],
        "release": deployment["release_id"],
        "instance": instance.id,
        "image": images[0]["id"],
        "upload": upload["id"],
        "node": world.node.id,
        "secret": secret["id"],
        "webhook": webhook["id"],
        "delivery": delivery["id"],
        "volume": kept.volume_id,
        "snapshot": kept.id,
        "backup": backup.id,
        "copy": left.id,
        "port": port["id"],
        "group": group["id"],
        **made,
        **joined,
    }


def _seed_access(unit: Unit, project: Project, prefix: str) -> dict[str, str]:
    """A member, and a service account with a token, a custom role that nobody has, and a grant."""
    organization = unit.tx.organizations.get(project.organization_id)
    assert organization is not None
    everything = Grant(id="", principal_id="", role=iam.OWNER, scope_id="", created_at=0.0)
    operator = Principal(principal_id="", token_id="", scopes=(), grants=(everything,))
    member = add_user(unit, f"member@{prefix}", "viewer", organization.id, new_secret(TokenKind.PERSONAL))
    account = serviceaccounts.create_account(unit, organization, "robot")
    secret = new_secret(TokenKind.SERVICE)
    token = serviceaccounts.create_token(
        unit, operator, organization, account, TokenWish(name="one", kind=TokenKind.SERVICE), secret=secret
    )
    role = roles.create_role(unit, operator, organization, "reader", ["apps:read"])
    scope = grants.ScopeIdTarget(project.id).find(unit.tx, operator).resource
    grant = grants.create_grant(unit, operator, scope, account.id, "viewer")
    secret = invitations.invitation_secret()
    guest = invitations.invite(unit, operator, organization, email=f"guest@{prefix}", role="viewer", secret=secret)
    return {
        "invitation": guest.id,
        "member": member.principal_id,
        "user": member.principal_id,
        "account": account.id,
        "token": token.id,
        "role": role.id,
        "grant": grant.id,
    }


def _seed_join(unit: Unit, prefix: str, fresh: Fresh) -> dict[str, str]:
    """A join token, the key of a node, and an authority."""
    operator = Principal(principal_id="", token_id="", scopes=(), grants=())
    token = joins.create_join_token(unit, operator, joins.JoinWish(), joins.join_secret())
    key = NodeKey(
        id=unit.new_id("nky"),
        fingerprint=hashlib.sha256(prefix.encode()).hexdigest(),
        member_id=unit.new_id("node"),
        kind=MemberKind.NODE,
        token_id=token.id,
        authority_id="",
        created_at=unit.now(),
        expires_at=unit.now() + 1e6,
    )
    unit.tx.node_keys.insert(key)
    return {"join_token": token.id, "node_key": key.id, "authority": nodeauthority.add(unit, fresh).id}


@dataclass(frozen=True)
class Caller:
    """Somebody with one role on one scope of the first organization."""

    role: str
    level: int
    token: str

    def __str__(self) -> str:
        return f"{self.role} on {('the system', 'the organization', 'the project', 'the app')[self.level]}"

    def may(self, permission: str, level: int) -> bool:
        """What `core.iam` says of a thing at this level of the first organization."""
        chain = ("", "org", "prj", "app")
        grants_ = () if self.role == NOBODY else (self._grant(chain[self.level]),)
        principal = Principal(principal_id="", token_id="", scopes=(), grants=grants_)
        return iam.allowed(principal, permission, chain[: level + 1])

    def _grant(self, scope_id: str) -> Grant:
        return Grant(id="", principal_id="", role=self.role, scope_id=scope_id, created_at=0.0)


NOBODY = "nobody"
_LETTERS = "abcdefghijklmnop"
CALLERS = tuple(
    Caller(role, level, f"pat_{letter * 42}Z")
    for letter, (role, level) in zip(
        _LETTERS,
        [
            *((role, ORGANIZATION) for role in iam.ROLES),
            ("owner", PROJECT),
            ("viewer", PROJECT),
            ("developer", APP),
            (NOBODY, SYSTEM),
        ],
        strict=False,
    )
)
OPERATOR = Caller("owner", SYSTEM, ADMIN)


@dataclass(frozen=True)
class Matrix:
    """A world with two organizations, the things in each, and all callers."""

    world: World
    own: Things
    foreign: Things

    async def ask(
        self, operation: Operation, token: str | None, things: Things, *, without: Container[str] = ()
    ) -> Answer:
        """The operation on these things; `without` these parameters of its query."""
        asked = asked_of(operation, things, without=without)
        return await self.world.call(
            operation.method,
            asked.address(operation),
            asked.body,
            token=token,
            query=asked.query,
            headers=asked.headers,
            raw=asked.raw,
        )


@dataclass(frozen=True)
class Asked:
    """What a request that makes sense gives of each of its parts."""

    path: dict[str, str]
    query: dict[str, str]
    headers: dict[str, str]
    body: Any = None
    raw: bytes | None = None
    """A body that is not JSON."""

    def address(self, operation: Operation) -> str:
        return operation.path.format_map(self.path)


def asked_of(operation: Operation, things: Things, *, without: Container[str] = ()) -> Asked:
    """A request about these things; one that needs what no table here has fails by its name."""
    known_things = {**things, **NUMBERS}
    named = re.findall(r"\{(\w+)\}", operation.path)
    unseeded = [name for name in named if name not in known_things]
    assert not unseeded, f"{operation.name}: tests/api/matrix.py cannot seed {unseeded} yet"
    known = operation.parameters("query")
    unknown = {name for name, each in known.items() if each.get("required") and name not in QUERIES}
    assert not unknown, f"{operation.name}: tests/api/matrix.py needs values for {unknown}"
    needs = operation.spec.get("requestBody", {}).get("required", False) and operation.name not in RAW
    assert not needs or operation.name in BODIES, f"{operation.name}: tests/api/matrix.py has no body for it"
    given = {name: value for name, value in QUERIES.items() if name in known and name not in without}
    return Asked(
        path={name: known_things[name] for name in named},
        query={name: _filled(value, things) for name, value in given.items()},
        headers={name: value for name, value in _HEADERS.items() if name in operation.parameters("header")},
        body=_filled(BODIES.get(operation.name), things),
        raw=RAW.get(operation.name),
    )


def named_things(operation: Operation) -> Iterator[str]:
    """The things that an operation names anywhere: in its path, its query, its body. The project of an app, a group, a
    secret or a volume is not among them, because it is looked at only where that is given by name."""
    found = re.findall(r"\{(\w+)\}", operation.path)
    by_name = {"app", "group", "secret", "volume"}.intersection(found)
    known = operation.parameters("query").keys() - ({"project"} if by_name else set())
    given = [value for name, value in QUERIES.items() if name in known]
    given.append(json.dumps(BODIES.get(operation.name)))
    for text in given:
        found += re.findall(r"\{(\w+)\}", text)
    yield from dict.fromkeys(name for name in found if name not in NUMBERS)


def unknown_references(operation: Operation) -> set[str]:
    """Fields of the body that sound like the id of a thing and that the table of bodies does not fill with one."""
    body = BODIES.get(operation.name) or {}
    filled = {name for name, value in body.items() if isinstance(value, str) and "{" in value}
    kinds = PATH_THINGS | {name for name, value in QUERIES.items() if "{" in value}
    sounding = {name for name in operation.body_fields if name in kinds or name.endswith("_id")}
    return sounding - filled - _UNNAMED


PATH_THINGS = frozenset(name for operation in OPERATIONS for name in re.findall(r"\{(\w+)\}", operation.path))


def absent(things: Things) -> dict[str, str]:
    """Ids of the same kinds of what there is not."""
    return {name: f"{value.partition('_')[0]}_{'0' * 26}" for name, value in things.items()}


def told(answer: Answer, things: Things) -> tuple[int, object]:
    """What an answer tells, but for the ids that the question named."""
    if not answer.content:
        return answer.status, None
    text = answer.content.decode()
    for name, value in things.items():
        text = text.replace(value, f"<{name}>")
    if not answer.headers["content-type"].endswith("json") or "ndjson" in answer.headers["content-type"]:
        return answer.status, text
    return answer.status, {key: value for key, value in json.loads(text).items() if key not in _PAINTED}


def _filled(value: Any, things: Things) -> Any:
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda match: things[match[1]], value)
    if isinstance(value, dict):
        return {name: _filled(each, things) for name, each in value.items()}
    return value


async def make_matrix(spool: Path) -> Matrix:
    world = await make_world(spool)
    own = await seed(world, world.project, ADMIN, "own")
    foreign = await seed(world, world.foreign, ADMIN, "theirs")
    await world.commit(lambda unit: unit.tx.master_keys.insert(MasterKey(id="memory:0", created_at=0.0)))
    scopes = ("", own["organization"], own["project"], own["app"])
    for caller in CALLERS:
        email, scope = f"{caller}@x", scopes[caller.level]
        token = await world.commit(_adding(email, caller, scope))
        assert token
    return Matrix(world, own, foreign)


def _adding(email: str, caller: Caller, scope: str) -> Callable[[Unit], str]:
    def add(unit: Unit) -> str:
        token = add_user(unit, email, caller.role, scope, caller.token)
        if caller.role == NOBODY:
            for grant in unit.tx.grants.select():
                if grant.principal_id == token.principal_id:
                    unit.tx.grants.delete(grant.id)
        return token.id

    return add
