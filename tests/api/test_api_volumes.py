"""Volumes over the API: made, attached, resized, kept in snapshots, put back, deleted; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shellwego.control.assignments import assignments
from shellwego.control.unit import Unit
from shellwego.core.volumes import restated
from shellwego.ports.store import eq
from tests.api.api_world import ADMIN, FOREIGN, VIEWER, World, keep_volume

GIB = 1 << 30
IMAGE = "registry.example/hello:v1"


async def made(world: World, name: str = "data", **more: object) -> Any:
    return await world.made("/v1/volumes", {"name": name, "size": "1gb", **more})


async def kept(world: World, name: str = "data") -> str:
    """A volume that its node has; returns the id of its snapshot."""
    snapshot = await world.commit(lambda unit: keep_volume(unit, world.project.id, name, world.node.id))
    return snapshot.id


async def changed(world: World, name: str = "data", **changes: object) -> None:
    def work(unit: Unit) -> None:
        (row,) = unit.tx.volumes.select(eq("name", name))
        unit.tx.volumes.update(restated(replace(row, **changes)))  # type: ignore[arg-type]

    await world.commit(work)


async def shop(world: World, name: str = "shop", **config: object) -> Any:
    world.images.publish(IMAGE)
    await world.made("/v1/apps", {"name": name})
    return await world.post(f"/v1/apps/{name}/deployments", {"image": IMAGE, "port": 8080, "config": config})


MOUNT = {"source": "data", "destination": "/data"}


class TestTheVolume:
    async def test_a_new_one_is_available_and_lives_nowhere(self, world: World) -> None:
        shown = await made(world)
        assert (shown["state"], shown["node"], shown["size_bytes"]) == ("available", None, GIB)
        assert (await world.get("/v1/volumes/data")).json == shown
        listed = (await world.get("/v1/volumes?filter[state]=available")).json["data"]
        assert [each["id"] for each in listed] == [shown["id"]]

    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            ({"name": "A", "size": "1gb"}, 422, "name"),
            ({"name": "../x", "size": "1gb"}, 422, "name"),
            ({"name": "a" * 64, "size": "1gb"}, 422, "name"),
            ({"name": "a", "size": "1"}, 422, "size"),
            ({"name": "a", "size": "100tb"}, 422, "size"),
            ({"name": "a", "size": "20000001"}, 422, "size"),
            ({"name": "a", "size": "much"}, 422, "size"),
            ({"name": "a"}, 422, "body"),
            ({"name": "a", "snapshot": "snap_x"}, 422, "snapshot"),
            ({"name": "a", "size": "1gb", "node": "one"}, 400, "node"),
        ],
    )
    async def test_a_bad_one_is_refused_by_its_field(self, world: World, body: Any, status: int, field: str) -> None:
        answer = await world.post("/v1/volumes", body)
        assert answer.status == status, answer.content
        assert field in [each["field"] for each in answer.json["errors"]] or field == "body"
        assert (await world.get("/v1/volumes")).json["data"] == []

    async def test_a_name_is_taken_once_and_what_is_foreign_looks_absent(self, world: World) -> None:
        volume = await made(world)
        again = await world.post("/v1/volumes", {"name": "data", "size": "1gb"})
        assert (again.status, again.code) == (409, "volume-exists")
        assert (await world.get(f"/v1/volumes/{volume['id']}", token=FOREIGN)).status == 404
        assert (await world.post("/v1/volumes", {"name": "x", "size": "1gb"}, token=VIEWER)).status == 403

    async def test_a_quota_bounds_how_many_and_how_much(self, world: World) -> None:
        path = f"/v1/projects/{world.project.id}/quotas"
        assert (await world.call("PUT", path, {"limits": {"volumes": 1, "storage": 2 * GIB}})).status == 200
        await made(world)
        assert (await world.post("/v1/volumes", {"name": "b", "size": "1gb"})).json["errors"][0]["field"] == "volumes"
        assert (await world.post("/v1/volumes/data/actions/resize", {"size": "2gb"})).status == 202
        refused = await world.post("/v1/volumes/data/actions/resize", {"size": "3gb"})
        assert (refused.status, refused.json["errors"][0]["field"]) == (429, "storage")

    async def test_it_only_grows_and_never_beyond_its_nodes_room(self, world: World) -> None:
        await kept(world)
        assert (await world.post("/v1/volumes/data/actions/resize", {"size": "512m"})).status == 422
        assert (await world.post("/v1/volumes/data/actions/resize", {"size": "15tb"})).code == "no-room"
        assert (await world.post("/v1/volumes/data/actions/resize", {"size": "2gb"})).json["size_bytes"] == 2 * GIB

    async def test_a_project_with_one_is_not_deleted(self, world: World) -> None:
        body = {"name": "other", "organization": world.project.organization_id}
        project = await world.made("/v1/projects", body, token=ADMIN)
        query = {"project": project["id"]}
        await world.made("/v1/volumes", {"name": "data", "size": "1gb"}, query=query, token=ADMIN)
        answer = await world.call("DELETE", f"/v1/projects/{project['id']}", token=ADMIN)
        assert (answer.status, answer.code) == (409, "project-not-empty")


class TestMounting:
    async def test_a_deploy_takes_it_and_another_app_cannot(self, world: World) -> None:
        await made(world)
        assert (await shop(world, mounts=[MOUNT])).status == 202
        assert (await world.get("/v1/volumes/data")).json["mounted_by"] == ["shop"]
        assert (await world.get("/v1/apps/shop")).json["config"]["mounts"] == [
            {**MOUNT, "process": "web", "read_only": False}
        ]
        other = await shop(world, "other", mounts=[MOUNT])
        assert (other.status, other.json["errors"][0]["code"]) == (422, "volume-in-use")
        answer = await world.call("DELETE", "/v1/volumes/data")
        assert (answer.status, answer.code) == (409, "volume-in-use")

    async def test_more_than_one_instance_cannot_share_it(self, world: World) -> None:
        await made(world)
        await shop(world, mounts=[MOUNT])
        answer = await world.post("/v1/apps/shop/scale", {"counts": {"web": 2}})
        assert (answer.status, answer.code) == (422, "volume-is-exclusive")
        assert answer.json["errors"][0]["field"] == "counts.web"
        assert (await world.post("/v1/apps/shop/scale", {"counts": {"web": 0}})).status == 202

    async def test_attach_and_detach_roll_out_unless_staged(self, world: World) -> None:
        await made(world)
        await shop(world)
        body = {"app": "shop", "destination": "/data"}
        staged = await world.made("/v1/volumes/data/actions/attach", {**body, "stage": True})
        assert staged["deployment_id"] is None
        begun = await world.made("/v1/volumes/data/actions/attach", body)
        assert begun["deployment_id"]
        assert begun["volume"]["mounted_by"] == ["shop"]
        planned = await world.made("/v1/apps/shop/plan", {})
        assert not planned["changes"]
        gone = await world.made("/v1/volumes/data/actions/detach", {})
        assert gone["deployment_id"]
        assert (await world.get("/v1/apps/shop")).json["config"]["mounts"] == []
        again = await world.post("/v1/volumes/data/actions/detach", {})
        assert (again.status, again.code) == (409, "volume-not-attached")

    async def test_attach_takes_the_permission_on_the_app_too(self, world: World) -> None:
        await made(world)
        await world.made("/v1/apps", {"name": "shop"})
        body = {"app": "no-such", "destination": "/data"}
        assert (await world.post("/v1/volumes/data/actions/attach", body)).code == "app-not-found"

    async def test_a_plan_tells_of_the_short_stop(self, world: World) -> None:
        await made(world)
        await shop(world, mounts=[MOUNT])
        await world.running("shop")
        planned = await world.made("/v1/apps/shop/plan", {"env": {"A": "b"}})
        assert planned["processes"][0]["pause"] == "data"

    async def test_a_rollback_to_what_mounts_a_deleted_volume_is_refused(self, world: World) -> None:
        await made(world)
        await shop(world, mounts=[MOUNT])
        await world.running("shop")

        def destroy(unit: Unit) -> None:
            for volume in unit.tx.volumes.select():
                unit.tx.volumes.delete(volume.id)

        await world.commit(destroy)
        answer = await world.post("/v1/apps/shop/actions/rollback", {"release": "v1"})
        assert (answer.status, answer.code) == (422, "mount-refused")


class TestSnapshots:
    async def test_nothing_is_kept_of_what_no_node_has(self, world: World) -> None:
        await made(world)
        answer = await world.post("/v1/volumes/data/snapshots", {})
        assert (answer.status, answer.code) == (409, "volume-not-made")

    async def test_one_at_a_time(self, world: World) -> None:
        await kept(world)
        taken = await world.post("/v1/volumes/data/snapshots", {"description": "before"})
        assert (taken.status, taken.json["state"]) == (202, "creating")
        assert (await world.get("/v1/volumes/data")).json["state"] == "snapshotting"
        assert (await world.post("/v1/volumes/data/snapshots", {})).code == "volume-busy"
        orders = await world.control.read(lambda tx: assignments(tx, world.node.id).volumes)
        assert [each.made for each in orders[0].snapshots] == [True, False]

    async def test_a_restore_in_place_waits_for_nobody_to_have_it(self, world: World) -> None:
        snapshot = await kept(world)
        await changed(world, instance_id="ins_1")
        held = await world.post("/v1/volumes/data/restore", {"snapshot": snapshot})
        assert (held.status, held.code) == (409, "volume-held")
        await changed(world, instance_id="")
        assert (await world.post("/v1/volumes/data/restore", {"snapshot": snapshot})).json["state"] == "restoring"
        assert (await world.post("/v1/volumes/data/restore", {"snapshot": "snap_x"})).status == 404

    async def test_a_copy_lives_where_its_snapshot_does_and_keeps_it(self, world: World) -> None:
        snapshot = await kept(world)
        copy = await world.made("/v1/volumes/data/restore", {"snapshot": snapshot, "to": "copy"})
        assert (copy["name"], copy["node"], copy["state"]) == ("copy", "one", "creating")
        answer = await world.call("DELETE", f"/v1/volumes/data/snapshots/{snapshot}")
        assert (answer.status, answer.code) == (409, "snapshot-has-clones")

    async def test_a_volume_goes_after_its_snapshots_and_when_it_is_not_protected(self, world: World) -> None:
        snapshot = await kept(world)
        assert (await world.call("DELETE", "/v1/volumes/data")).code == "volume-has-snapshots"
        assert (await world.call("DELETE", f"/v1/volumes/data/snapshots/{snapshot}")).status == 202
        await world.commit(lambda unit: unit.tx.snapshots.delete(snapshot))
        await world.call("PATCH", "/v1/volumes/data", {"protected": True})
        assert (await world.call("DELETE", "/v1/volumes/data")).code == "volume-protected"
        await world.call("PATCH", "/v1/volumes/data", {"protected": False})
        assert (await world.call("DELETE", "/v1/volumes/data")).status == 202
        assert (await world.get("/v1/volumes/data")).json["state"] == "deleting"
        orders = await world.control.read(lambda tx: assignments(tx, world.node.id).volumes)
        assert [each.present for each in orders] == [False]

    async def test_one_that_no_node_has_is_gone_at_once(self, world: World) -> None:
        await made(world)
        assert (await world.call("DELETE", "/v1/volumes/data")).status == 202
        assert (await world.get("/v1/volumes/data")).status == 404


async def test_waiting_ends_when_it_is_as_asked(world: World) -> None:
    await kept(world)
    answer = await world.get("/v1/volumes/data/wait", query={"state": "available", "timeout": "5"})
    assert answer.json["state"] == "available"
