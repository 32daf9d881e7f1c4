"""For each operation of the document a request that is answered well, about things of its own.

A fuzzer that only guessed would see refusals; with these, its guesses about one part of a request meet a whole that works.
Things, bodies and queries are those of the authorization matrix, in an organization made for this one request. What an
operation needs beyond them (a deployment that still goes on, a project with nothing in it) is made by `_READY`; an operation
that nothing here knows fails with the name of what to add.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyotp import TOTP

from shellwego.control import invitations
from shellwego.control.authentication import new_secret, secret_hash
from shellwego.control.bootstrap import ADMIN_EMAIL
from shellwego.control.unit import Unit
from shellwego.core import iam
from shellwego.core.credentials import Credentials
from shellwego.core.envelope import MasterKey
from shellwego.core.instances import Phase
from shellwego.core.nodes import Node, NodeHealth, Underlay
from shellwego.core.plans import UNLIMITED
from shellwego.core.tenancy import Grant, Organization, Principal, Project, TokenKind
from shellwego.drivers.passwords.memory import MemoryHasher
from shellwego.ports.store import eq
from tests.api.api_bodies import IMAGE
from tests.api.api_world import ADMIN, World, add_tenant, add_user, run_instance
from tests.api.matrix import Asked, Operation, Things, asked_of, seed
from tests.contract.images_samples import digest_of, docker_save, entry, layer

PASSWORD = "correct horse battery"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """An organization made for one request, and the things in it."""

    world: World
    name: str
    project: Project
    things: Things

    async def made(self, path: str, body: object = None, **options: Any) -> Any:
        return await self.world.made(path, body, token=ADMIN, **options)

    @property
    def in_project(self) -> dict[str, str]:
        return {"project": self.project.id}


async def make_request(world: World, operation: Operation) -> Asked:
    """A request that an administrator is answered well, about things that nothing else uses."""
    await world.commit(lambda unit: _restore(unit, world.node))
    name = f"fuzz-{next(_numbers)}"
    project = await world.commit(lambda unit: add_tenant(unit, name, UNLIMITED))
    place = Place(world, name, project, await seed(world, project, ADMIN, name))
    asked = asked_of(operation, place.things)
    make_ready = _READY.get(operation.name)
    return await make_ready(place, asked) if make_ready else asked


def _restore(unit: Unit, node: Node) -> None:
    """A fuzzer that may do everything may also take this from itself; and of some things there may be only few. The node on
    which all volumes are is drained, removed, or lost to make one of them promotable."""
    if unit.tx.nodes.get(node.id) is not None:
        unit.tx.nodes.delete(node.id)
    unit.tx.nodes.insert(node)
    for authority in unit.tx.node_authorities.select():
        unit.tx.node_authorities.delete(authority.id)
    for join_token in unit.tx.join_tokens.select():
        unit.tx.join_tokens.delete(join_token.id)
    user = unit.tx.users.select(eq("email", ADMIN_EMAIL), limit=1)[0]
    for token in unit.tx.tokens.select(eq("secret_hash", secret_hash(ADMIN))):
        if token.revoked_at is not None:
            unit.tx.tokens.update(replace(token, revoked_at=None))
    if not unit.tx.grants.select(eq("principal_id", user.id), eq("scope_id", ""), eq("role", iam.OWNER), limit=1):
        unit.tx.grants.insert(
            Grant(id=unit.new_id("grn"), principal_id=user.id, role=iam.OWNER, scope_id="", created_at=unit.now())
        )


async def _going_on(place: Place, asked: Asked) -> Asked:
    """A deployment that is not over."""
    body = {"image": IMAGE, "port": 8081}
    deployment = await place.made(f"/v1/apps/{place.things['app']}/deployments", body)
    return replace(asked, path={**asked.path, "deployment": deployment["id"]})


async def _a_run(place: Place, asked: Asked) -> Asked:
    run = await place.made(f"/v1/apps/{place.things['app']}/runs", {"command": ["true"]})
    return replace(asked, path={**asked.path, "instance": run["id"]})


async def _asleep(place: Place, asked: Asked) -> Asked:
    def work(unit: Unit) -> str:
        return run_instance(unit, f"{place.name}-shop", "web", Phase.ASLEEP, place.world.node.id).id

    return replace(asked, path={**asked.path, "instance": await place.world.commit(work)})


async def _whole_upload(place: Place, asked: Asked) -> Asked:
    """An upload with an image in it, and its digest."""
    tar = docker_save([layer(entry("bin/hello", b"hello"))], ["fuzz:v1"])
    upload = await place.made("/v1/images/uploads", query=place.in_project)
    headers = {"Content-Range": f"bytes 0-{len(tar) - 1}/*", "content-type": "application/octet-stream"}
    path = f"/v1/images/uploads/{upload['id']}"
    answer = await place.world.call("PATCH", path, raw=tar, headers=headers, query=place.in_project, token=ADMIN)
    assert answer.status == 200, answer.content
    return replace(asked, path={"upload": upload["id"]}, query={**asked.query, "digest": digest_of(tar)})


async def _unused_image(place: Place, asked: Asked) -> Asked:
    reference = f"registry.example/{place.name}:v1"
    place.world.images.publish(reference)
    image = await place.made("/v1/images", {"reference": reference}, query=place.in_project)
    return replace(asked, path={"image": image["id"]})


async def _empty_project(place: Place, asked: Asked) -> Asked:
    project = await place.made("/v1/projects", {"name": "empty", "organization": place.project.organization_id})
    return replace(asked, path={"project": project["id"]})


async def _empty_organization(place: Place, asked: Asked) -> Asked:
    def work(unit: Unit) -> Organization:
        return unit.tx.organizations.insert(
            Organization(id=unit.new_id("org"), name=f"{place.name}-e", plan=UNLIMITED, created_at=unit.now())
        )

    return replace(asked, path={"organization": (await place.world.commit(work)).id})


async def _empty_volume(place: Place, asked: Asked) -> Asked:
    """One that nothing mounts and that has no snapshots."""
    volume = await place.made("/v1/volumes", {"name": "empty", "size": "1gb"}, query=place.in_project)
    return replace(asked, path={"volume": volume["id"]})


async def _attached_volume(place: Place, asked: Asked) -> Asked:
    body = {"app": place.things["app"], "destination": "/data"}
    await place.made(f"/v1/volumes/{place.things['volume']}/actions/attach", body)
    return asked


async def _own_port(_: Place, asked: Asked) -> Asked:
    """One that nobody has."""
    return replace(asked, body={"port": 29_999 - next(_numbers) % 4_000})


async def _movable_volume(place: Place, asked: Asked) -> Asked:
    """There is another node, which has room for it."""

    def work(unit: Unit) -> Node:
        return unit.tx.nodes.insert(replace(place.world.node, id=unit.new_id("node"), name=f"{place.name}-node"))

    return replace(asked, body={"node": (await place.world.commit(work)).name})


async def _moving_volume(place: Place, asked: Asked) -> Asked:
    movable = await _movable_volume(place, asked)
    await place.made(f"/v1/volumes/{place.things['volume']}/actions/move", movable.body)
    return asked


async def _replicated_volume(place: Place, asked: Asked) -> Asked:
    movable = await _movable_volume(place, asked)
    wish = {"every_s": 60, "node": movable.body["node"]}
    await place.world.call("PUT", f"/v1/volumes/{place.things['volume']}/replication", wish, token=ADMIN)
    return asked


async def _replicable_volume(place: Place, asked: Asked) -> Asked:
    movable = await _movable_volume(place, asked)
    return replace(asked, body={"every_s": 60, "node": movable.body["node"]})


async def _promotable_volume(place: Place, asked: Asked) -> Asked:
    """Its node is down for so long that nothing there can have it, and its standby holds a round."""
    await _replicated_volume(place, asked)

    def work(unit: Unit) -> None:
        volume = unit.tx.volumes.get(str(place.things["volume"]))
        home = unit.tx.nodes.get(volume.node_id) if volume else None
        assert volume is not None
        assert home is not None
        unit.tx.volumes.update(replace(volume, observed=replace(volume.observed, leased=True)))
        unit.tx.nodes.update(replace(home, health=NodeHealth.DOWN, leases_over_epoch=home.epoch))
        (standby,) = unit.tx.replicas.select(eq("volume_id", volume.id), eq("purpose", "standby"))
        unit.tx.replicas.update(replace(standby, taken_at=unit.now()))

    await place.world.commit(work)
    return asked


async def _failed_delivery(place: Place, asked: Asked) -> Asked:
    """What waits for a webhook fails where that is switched off."""
    await place.world.call("PATCH", f"/v1/webhooks/{place.things['webhook']}", {"active": False}, token=ADMIN)
    return asked


async def _own_token(place: Place, asked: Asked) -> Asked:
    token = await place.made("/v1/user/tokens", {"name": "fuzz"})
    return replace(asked, path={"token": token["id"]})


async def _asking_token(place: Place, asked: Asked) -> Asked:
    """A token that ends itself."""
    token = await place.made("/v1/user/tokens", {"name": "fuzz"})
    return replace(asked, path={"token": "current"}, headers=_signed(token["secret"], asked))


async def _enrolled(place: Place, asked: Asked) -> Asked:
    """A user with one-time codes that are not confirmed, and his code."""
    secret = new_secret(TokenKind.PERSONAL)
    await place.world.commit(lambda unit: _add_account(unit, place, secret))
    enrolment = await place.world.made("/v1/user/totp", {"password": PASSWORD}, token=secret)
    code = TOTP(enrolment["secret"]).generate_otp(int(place.world.clock.now() // 30))
    return replace(asked, body={"code": str(code)}, headers=_signed(secret, asked))


async def _account(place: Place, asked: Asked) -> Asked:
    secret = new_secret(TokenKind.PERSONAL)
    email = await place.world.commit(lambda unit: _add_account(unit, place, secret))
    return replace(asked, body={"email": email, "password": PASSWORD})


async def _invited(place: Place, asked: Asked) -> Asked:
    secret = await place.world.commit(lambda unit: _invite(unit, place, f"new@{place.name}"))
    return replace(asked, body={"invitation": secret, "password": PASSWORD})


async def _invited_administrator(place: Place, asked: Asked) -> Asked:
    return replace(asked, body={"invitation": await place.world.commit(lambda unit: _invite(unit, place, ADMIN_EMAIL))})


async def _old_master_key(place: Place, asked: Asked) -> Asked:
    def work(unit: Unit) -> None:
        if unit.tx.master_keys.get("memory:0") is None:
            unit.tx.master_keys.insert(MasterKey(id="memory:0", created_at=0.0))

    await place.world.commit(work)
    return asked


async def _own_node(place: Place, asked: Asked) -> Asked:
    """One that is down, on which nothing runs."""

    def work(unit: Unit) -> Node:
        node = replace(place.world.node, id=unit.new_id("node"), name=f"{place.name}-node", health=NodeHealth.DOWN)
        return unit.tx.nodes.insert(node)

    return replace(asked, path={"node": (await place.world.commit(work)).id})


async def _encrypting_node(place: Place, asked: Asked) -> Asked:
    """One that has keys to replace."""
    node = place.world.node
    facts = replace(node.facts, underlay=Underlay.WIREGUARD)
    await place.world.commit(
        lambda unit: unit.tx.nodes.insert(
            replace(node, id=unit.new_id("node"), name=f"{place.name}-sealed", facts=facts, health=NodeHealth.DOWN)
        )
    )
    return asked


async def _older_authority(place: Place, asked: Asked) -> Asked:
    """Another one signs instead."""
    await place.made("/v1/nodes/authorities/actions/rotate")
    return asked


def _signed(secret: str, asked: Asked) -> dict[str, str]:
    return {**asked.headers, "Authorization": f"Bearer {secret}"}


def _add_account(unit: Unit, place: Place, secret: str) -> str:
    """A user with a token and a password; returns his address."""
    email = f"account@{place.name}"
    token = add_user(unit, email, "viewer", place.project.id, secret)
    unit.tx.credentials.insert(Credentials(id=token.principal_id, password_hash=MemoryHasher().hash(PASSWORD)))
    return email


def _invite(unit: Unit, place: Place, email: str) -> str:
    organization = unit.tx.organizations.get(place.project.organization_id)
    assert organization is not None
    administrator = unit.tx.users.select(eq("email", ADMIN_EMAIL), limit=1)[0]
    grants = tuple(unit.tx.grants.select(eq("principal_id", administrator.id)))
    inviter = Principal(principal_id=administrator.id, token_id="", scopes=(), grants=grants)
    secret = invitations.invitation_secret()
    invitations.invite(unit, inviter, organization, email=email, role="viewer", secret=secret)
    return secret


_READY: Mapping[str, Callable[[Place, Asked], Awaitable[Asked]]] = {
    "cancel_deployment": _going_on,
    "publish_port": _own_port,
    "stop_run": _a_run,
    "resume_vm": _asleep,
    "finish_upload": _whole_upload,
    "delete_image": _unused_image,
    "delete_volume": _empty_volume,
    "detach_volume": _attached_volume,
    "move_volume": _movable_volume,
    "cancel_volume_move": _moving_volume,
    "replicate_volume": _replicable_volume,
    "stop_volume_replication": _replicated_volume,
    "promote_volume": _promotable_volume,
    "delete_project": _empty_project,
    "delete_organization": _empty_organization,
    "redeliver": _failed_delivery,
    "revoke_token": _own_token,
    "sign_out": _asking_token,
    "confirm_totp": _enrolled,
    "sign_in": _account,
    "register": _invited,
    "accept_invitation": _invited_administrator,
    "retire_master_key": _old_master_key,
    "remove_node": _own_node,
    "update_node": _own_node,
    "cordon_node": _own_node,
    "uncordon_node": _own_node,
    "drain_node": _own_node,
    "retire_node_authority": _older_authority,
    "rotate_node_keys": _encrypting_node,
}
