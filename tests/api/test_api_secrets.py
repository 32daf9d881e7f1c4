"""Secrets over the API: set, referred to, rotated, retired, deleted; and never told."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from shellwego.control.assignments import assignments
from shellwego.control.delivery import Delivery
from shellwego.control.unit import Unit
from shellwego.core.assignments import SecretsRequest
from shellwego.core.errors import ConflictError, ForbiddenError, NotFoundError, UnavailableError
from shellwego.core.instances import Desired, Instance, Phase
from shellwego.core.secrets import MAX_VALUE
from tests.api.api_world import FOREIGN, VIEWER, World

VALUE = "postgres://shop:correct-horse@db/shop"
REF = {"secret": "DB_URL"}
NODE_EPOCH = 1


async def made(world: World, name: str = "DB_URL", value: str = VALUE, **more: object) -> Any:
    return await world.made("/v1/secrets", {"name": name, "value": value, **more})


async def rotated(world: World, value: str, **more: object) -> Any:
    return await world.made("/v1/secrets/DB_URL/versions", {"value": value, **more})


async def deploy(world: World, env: object = None, image: str = "registry.example/hello:v1") -> Any:
    world.images.publish(image)
    if (await world.get("/v1/apps/shop")).status == 404:
        await world.made("/v1/apps", {"name": "shop"})
    body = {"image": image, "port": 8080, "env": {"DATABASE_URL": REF} if env is None else env}
    return await world.post("/v1/apps/shop/deployments", body)


async def values(world: World, instance: Instance, **changes: Any) -> dict[str, str]:
    """What the node of the instance is told."""
    asked = {"node_id": instance.node_id, "epoch": NODE_EPOCH, "instance_id": instance.id, **changes}
    told = await Delivery(world.control, world.sealer).values(SecretsRequest(**asked))
    return {name: value.reveal_text() for name, value in told.values.items()}


async def release_refs(world: World, release: str) -> Any:
    return (await world.get(f"/v1/apps/shop/releases/{release}")).json["config"]["secrets"]


class TestTheSecret:
    async def test_what_is_told_of_it_has_no_value(self, world: World) -> None:
        await made(world, description="of the shop", metadata={"team": "shop"})
        for path in ("/v1/secrets", "/v1/secrets/DB_URL", "/v1/secrets/DB_URL/versions"):
            answer = await world.get(path)
            assert answer.status == 200
            assert b"correct-horse" not in answer.content
        shown = (await world.get("/v1/secrets/DB_URL")).json
        assert (shown["name"], shown["latest"], shown["description"]) == ("DB_URL", 1, "of the shop")
        assert shown["metadata"] == {"team": "shop"}

    async def test_a_name_is_taken_once_in_a_project(self, world: World) -> None:
        await made(world)
        again = await world.post("/v1/secrets", {"name": "DB_URL", "value": "x"})
        assert (again.status, again.code) == (409, "secret-exists")
        assert again.json["errors"][0]["field"] == "name"

    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            ({"name": "1X", "value": VALUE}, 422, "name"),
            ({"name": "a-b", "value": VALUE}, 422, "name"),
            ({"name": "A", "value": ""}, 422, "value"),
            ({"name": "A", "value": VALUE + "\0"}, 422, "value"),
            ({"name": "A", "value": VALUE.ljust(MAX_VALUE + 1, "x")}, 422, "value"),
            ({"name": "A", "value": VALUE, "description": "x" * 501}, 422, "description"),
            ({"name": "A", "value": VALUE, "metadata": {"a b": "c"}}, 422, "metadata.a b"),
            ({"name": "A", "value": VALUE, "expires_at": "2001-01-01T00:00:00Z"}, 422, "expires_at"),
            ({"name": "A", "value": VALUE, "expires_at": "2001-01-01T00:00:00"}, 422, "expires_at"),
            ({"name": "A"}, 400, "value"),
            ({"name": "A", "value": [VALUE]}, 400, "value"),
            ({"name": "A", "values": VALUE, "value": VALUE}, 400, "values"),
            ({"name": "A", "value": VALUE + "\ud800"}, 400, "value"),
        ],
    )
    async def test_a_bad_one_is_refused_by_its_field_and_its_value_is_not_repeated(
        self, world: World, body: object, status: int, field: str
    ) -> None:
        answer = await world.post("/v1/secrets", body)
        assert answer.status == status
        assert field in [fault["field"] for fault in answer.json["errors"]]
        assert b"correct-horse" not in answer.content
        assert (await world.get("/v1/secrets")).json["data"] == []
        assert await world.control.read(lambda tx: tx.data_keys.count()) == 0

    async def test_64_kib_are_taken(self, world: World) -> None:
        await made(world, value="x" * MAX_VALUE)
        (version,) = (await world.get("/v1/secrets/DB_URL/versions")).json["data"]
        assert (version["size_bytes"], version["state"]) == (MAX_VALUE, "usable")

    async def test_a_kms_that_does_not_answer_is_told_and_nothing_is_stored(self, world: World) -> None:
        world.kms.available = False
        answer = await world.post("/v1/secrets", {"name": "A", "value": VALUE})
        assert (answer.status, answer.code) == (503, "kms-unavailable")
        assert (await world.get("/v1/secrets")).json["data"] == []

    async def test_the_same_request_again_makes_no_second_one_and_keeps_no_guessable_hash(self, world: World) -> None:
        body, headers = {"name": "A", "value": VALUE}, {"idempotency-key": "k-1"}
        first = await world.post("/v1/secrets", body, headers=headers)
        second = await world.post("/v1/secrets", body, headers=headers)
        assert (first.status, second.status) == (201, 201)
        assert first.content == second.content
        other = await world.post("/v1/secrets", {**body, "value": "y"}, headers=headers)
        assert (other.status, other.code) == (409, "idempotency-key-reused")
        one = await world.post("/v1/secrets", {**body, "name": "B"}, headers={"idempotency-key": "k-2"})
        two = await world.post("/v1/secrets", {**body, "name": "B"}, headers={"idempotency-key": "k-3"})
        assert (one.status, two.status) == (201, 409)
        hashes = await world.control.read(lambda tx: [row.request_hash for row in tx.idempotency.select()])
        assert len(set(hashes)) == len(hashes)

    async def test_who_may_only_read_sees_that_it_is_there_and_a_stranger_does_not(self, world: World) -> None:
        secret = await made(world)
        assert (await world.get("/v1/secrets/DB_URL", token=VIEWER)).status == 200
        assert (await world.call("DELETE", "/v1/secrets/DB_URL", token=VIEWER)).status == 403
        refused = await world.post(f"/v1/secrets/{secret['id']}/versions", {"value": "x"}, token=FOREIGN)
        absent = await world.post("/v1/secrets/sec_00000000000000000000000000/versions", {"value": "x"}, token=FOREIGN)
        assert refused.status == absent.status == 404
        assert refused.code == absent.code

    async def test_changes_are_audited_and_announced_without_the_value(self, world: World) -> None:
        await made(world)
        await rotated(world, "second-horse")
        await world.made("/v1/secrets/DB_URL/versions/1/actions/retire")
        assert (await world.call("DELETE", "/v1/secrets/DB_URL")).status == 204
        rows = await world.control.read(lambda tx: [*tx.events.select(), *tx.audit.select()])
        types = [row.type for row in rows if hasattr(row, "type")]
        assert [t for t in types if t.startswith("secret.")] == [
            f"secret.{change}" for change in ("created", "rotated", "retired", "deleted")
        ]
        assert "horse" not in repr(rows)
        assert await world.control.read(lambda tx: tx.data_keys.count() + tx.secret_versions.count()) == 0


class TestTheReference:
    async def test_latest_becomes_a_number_when_the_release_is_made(self, world: World) -> None:
        await made(world)
        await rotated(world, "two")
        assert (await deploy(world)).status == 202
        assert await release_refs(world, "v1") == {
            "DATABASE_URL": {"secret": "DB_URL", "version": "latest", "number": 2}
        }
        config = (await world.get("/v1/apps/shop")).json["config"]["secrets"]
        assert config == {"DATABASE_URL": {"secret": "DB_URL", "version": "latest", "number": None}}

    async def test_a_new_version_changes_nothing_until_the_next_deploy(self, world: World) -> None:
        await made(world)
        await deploy(world)
        instance = await world.running()
        app = (await world.get("/v1/apps/shop")).json
        assert app["config_differs"] is False
        await rotated(world, "two")
        assert await values(world, instance) == {"DATABASE_URL": VALUE}
        assert (await world.get("/v1/apps/shop")).json["config_differs"] is True
        plan = await world.made("/v1/apps/shop/plan", {})
        assert plan["changed"] is True
        assert plan["changes"] == [
            {"field": "env.DATABASE_URL", "before": "secret DB_URL v1", "after": "secret DB_URL v2"}
        ]
        await world.made("/v1/apps/shop/deployments", {})
        assert (await release_refs(world, "v2"))["DATABASE_URL"]["number"] == 2

    async def test_a_deploy_without_a_new_version_changes_nothing(self, world: World) -> None:
        await made(world)
        first = (await deploy(world)).json
        await world.running()
        again = await world.made("/v1/apps/shop/deployments", {})
        assert again["id"] == first["id"]

    async def test_a_number_stays_that_number(self, world: World) -> None:
        await made(world)
        await rotated(world, "two")
        await deploy(world, {"A": {"secret": "DB_URL", "version": 1}})
        assert await values(world, await world.running()) == {"A": VALUE}

    async def test_a_rollback_takes_the_version_of_the_old_release(self, world: World) -> None:
        await made(world)
        await deploy(world)
        await world.running()
        await rotated(world, "two")
        await world.made("/v1/apps/shop/deployments", {})
        await world.running()
        await world.made("/v1/apps/shop/actions/rollback", {})
        assert (await release_refs(world, "v3"))["DATABASE_URL"]["number"] == 1
        hashes = [(await world.get(f"/v1/apps/shop/releases/v{n}")).json["content_hash"] for n in (1, 2, 3)]
        assert hashes[0] == hashes[2] != hashes[1]

    async def test_a_rollback_to_a_version_that_is_gone_is_refused_by_its_variable(self, world: World) -> None:
        await made(world)
        await deploy(world)
        await world.running()
        await rotated(world, "two")
        await world.made("/v1/apps/shop/deployments", {})
        for instance in (await world.get("/v1/apps/shop/instances")).json["data"]:
            await world.commit(partial(_end, id_=instance["id"]))
        await world.running()
        await world.made("/v1/secrets/DB_URL/versions/1/actions/retire")
        refused = await world.post("/v1/apps/shop/actions/rollback", {"release": "v1"})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "env.DATABASE_URL")

    @pytest.mark.parametrize(
        ("ref", "code"),
        [
            ({"secret": "OTHER"}, "no-such-secret"),
            ({"secret": "DB_URL", "version": 9}, "no-such-version"),
            ({"secret": "DB_URL", "version": 1}, "secret-retired"),
            ({"secret": "DB_URL", "version": 2}, "secret-expired"),
            ({"secret": "DB_URL"}, "secret-expired"),
        ],
    )
    async def test_what_cannot_be_used_is_refused_by_its_variable(self, world: World, ref: object, code: str) -> None:
        await made(world)
        await rotated(world, "two", expires_at="2023-11-14T23:00:00Z")
        await world.made("/v1/secrets/DB_URL/versions/1/actions/retire")
        await world.clock.advance(3600.0)  # type: ignore[attr-defined]
        answer = await deploy(world, {"DATABASE_URL": ref})
        assert answer.status == 422
        assert [(fault["field"], fault["code"]) for fault in answer.json["errors"]] == [("env.DATABASE_URL", code)]
        assert (await world.get("/v1/apps/shop")).json["config"]["secrets"] == {}

    async def test_another_projects_secret_is_none(self, world: World) -> None:
        await world.made(
            f"/v1/secrets?project={world.foreign.id}", {"name": "DB_URL", "value": "theirs"}, token=FOREIGN
        )
        answer = await deploy(world)
        assert answer.json["errors"][0]["code"] == "no-such-secret"

    async def test_a_plain_value_takes_the_place_of_a_secret_and_the_other_way_round(self, world: World) -> None:
        await made(world)
        await deploy(world, {"A": REF, "B": "plain"})
        changed = await world.call("PATCH", "/v1/apps/shop/env", {"env": {"A": "now plain", "B": REF}, "stage": True})
        assert changed.json["env"] == {"A": "now plain"}
        assert list(changed.json["secrets"]) == ["B"]
        gone = await world.call("PATCH", "/v1/apps/shop/env", {"env": {"B": None}, "stage": True})
        assert gone.json["secrets"] == {}

    async def test_all_secrets_of_an_app_together_are_bounded(self, world: World) -> None:
        await made(world, value="x" * MAX_VALUE)
        answer = await deploy(world, {f"V{n}": REF for n in range(9)})
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, "env")


class TestRetiringAndDeleting:
    async def test_what_a_live_release_needs_is_kept(self, world: World) -> None:
        await made(world)
        await rotated(world, "two")
        await deploy(world)
        await world.running()
        for method, path in (("POST", "/versions/2/actions/retire"), ("DELETE", "")):
            refused = await world.call(method, f"/v1/secrets/DB_URL{path}")
            assert (refused.status, refused.code) == (409, "secret-in-use")
            assert "shop (v1)" in refused.json["detail"]
        assert (await world.post("/v1/secrets/DB_URL/versions/1/actions/retire")).status == 200
        assert (await world.get("/v1/secrets/DB_URL")).json["used_by"] == ["shop"]

    async def test_a_retired_value_is_destroyed_and_retiring_again_changes_nothing(self, world: World) -> None:
        await made(world)
        first = await world.made("/v1/secrets/DB_URL/versions/1/actions/retire")
        assert await world.made("/v1/secrets/DB_URL/versions/1/actions/retire") == first
        (row,) = await world.control.read(lambda tx: tx.secret_versions.select())
        assert (first["state"], row.sealed) == ("retired", None)

    async def test_a_secret_made_anew_is_another_one(self, world: World) -> None:
        await made(world)
        await deploy(world, {"A": REF, "B": "x"})
        one = (await world.get("/v1/apps/shop/releases/v1")).json["content_hash"]
        await world.made("/v1/apps/shop/deployments", {"env": {"A": None}})
        await world.running()
        assert (await world.call("DELETE", "/v1/secrets/DB_URL")).status == 204
        await made(world)
        await world.made("/v1/apps/shop/deployments", {"env": {"A": REF}})
        assert (await world.get("/v1/apps/shop/releases/v3")).json["content_hash"] != one


class TestTheDelivery:
    @pytest.fixture
    async def instance(self, world: World) -> Instance:
        await made(world)
        await deploy(world)
        return await world.running()

    async def test_a_use_is_noted_and_audited(self, world: World, instance: Instance) -> None:
        assert await values(world, instance) == {"DATABASE_URL": VALUE}
        (version,) = (await world.get("/v1/secrets/DB_URL/versions")).json["data"]
        assert version["last_used_at"] is not None
        rows = await world.control.read(lambda tx: tx.audit.select())
        (use,) = [row for row in rows if row.action == "secrets:use"]
        assert (use.actor, instance.id in use.detail) == (instance.node_id, True)

    async def test_another_node_gets_nothing(self, world: World, instance: Instance) -> None:
        with pytest.raises(ForbiddenError):
            await values(world, instance, node_id="node_x")
        with pytest.raises(NotFoundError):
            await values(world, instance, instance_id="ins_x")

    async def test_a_node_of_a_past_epoch_gets_nothing(self, world: World, instance: Instance) -> None:
        with pytest.raises(UnavailableError):
            await values(world, instance, epoch=NODE_EPOCH + 1)

    async def test_what_the_node_should_not_run_any_more_gets_nothing(self, world: World, instance: Instance) -> None:
        await world.commit(lambda unit: _stop(unit, instance))
        with pytest.raises(NotFoundError):
            await values(world, instance)

    async def test_a_row_that_was_moved_to_another_tenant_does_not_open(self, world: World, instance: Instance) -> None:
        theirs = await world.made(
            f"/v1/secrets?project={world.foreign.id}", {"name": "X", "value": "their-horse"}, token=FOREIGN
        )
        await world.commit(lambda unit: _steal(unit, theirs["id"], instance))
        with pytest.raises(ConflictError):
            await values(world, instance)

    async def test_an_old_value_put_under_a_new_number_does_not_open(self, world: World, instance: Instance) -> None:
        await rotated(world, "two")
        await world.commit(_swap)
        with pytest.raises(ConflictError) as refused:
            await values(world, instance)
        assert refused.value.code == "seal-broken"

    async def test_an_assignment_holds_names_and_no_value(self, world: World, instance: Instance) -> None:
        told = await world.control.read(lambda tx: assignments(tx, instance.node_id))
        assert told.items[0].workload.secrets == ("DATABASE_URL",)
        assert "horse" not in repr(told)


def _end(unit: Unit, id_: str) -> None:
    instance = unit.tx.instances.get(id_)
    assert instance is not None
    unit.tx.instances.update(replace(instance, phase=Phase.STOPPED))


def _stop(unit: Unit, instance: Instance) -> None:
    unit.tx.instances.update(replace(unit.tx.instances.get(instance.id) or instance, desired=Desired.STOP))


def _steal(unit: Unit, secret_id: str, instance: Instance) -> None:
    """Put their sealed value, and the key that it is under, where ours was."""
    (their,) = [row for row in unit.tx.secret_versions.select() if row.secret_id == secret_id]
    (ours,) = [row for row in unit.tx.secret_versions.select() if row.secret_id != secret_id]
    unit.tx.secret_versions.update(replace(ours, sealed=their.sealed))


def _swap(unit: Unit) -> None:
    first, second = sorted(unit.tx.secret_versions.select(), key=lambda row: row.number)
    unit.tx.secret_versions.update(replace(first, sealed=second.sealed))
