"""Encrypted volumes over the API: they are so unless somebody says otherwise, their keys go to their nodes alone, and with a
volume its key is gone for good."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plasmavmc.errors import ConflictError as EngineConflictError
from plasmavmc.storage import luks
from shellwego.control.assignments import assignments
from shellwego.control.loops.rewrap import Rewrapper
from shellwego.control.nodes import Nodes
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Unit
from shellwego.control.volumes import delete_volume
from shellwego.core.assignments import VolumeKeyRequest
from shellwego.core.envelope import Label
from shellwego.core.errors import ConflictError, ForbiddenError, NotFoundError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.core.volumes import (
    LOST,
    ObservedSnapshot,
    ObservedVolume,
    Presence,
    Snapshot,
    SnapshotState,
    Volume,
    restated,
)
from shellwego.ports.kms import WrappedKey
from shellwego.ports.store import eq
from tests.api.api_world import ADMIN, World

GIB = 1 << 30
KEYS = "/v1/system/master-keys"
IMAGE = "registry.example/hello:v1"


async def made(world: World, name: str = "data", **more: object) -> Any:
    return await world.made("/v1/volumes", {"name": name, "size": "1gb", **more})


async def row(world: World, name: str = "data") -> Volume:
    [found] = await world.control.read(lambda tx: tx.volumes.select(eq("name", name)))
    return found


async def homed(world: World, name: str = "data", **more: object) -> str:
    """One that its node has, with a snapshot of it; returns the snapshot's id."""
    volume = await made(world, name, **more)

    def work(unit: Unit) -> str:
        snapshot_id = unit.new_id("snap")
        there = ObservedSnapshot(presence=Presence.PRESENT)
        seen = ObservedVolume(presence=Presence.PRESENT, size_bytes=GIB, snapshots={snapshot_id: there})
        stored = unit.tx.volumes.get(volume["id"])
        assert stored is not None
        unit.tx.volumes.update(restated(replace(stored, node_id=world.node.id, made=True, observed=seen)))
        snapshot = Snapshot(
            id=snapshot_id,
            volume_id=stored.id,
            project_id=stored.project_id,
            size_bytes=GIB,
            state=SnapshotState.AVAILABLE,
            created_at=unit.now(),
            created_by="me",
        )
        return unit.tx.snapshots.insert(snapshot).id

    return await world.commit(work)


async def key_of(world: World, name: str = "data", **changes: Any) -> bytes:
    """What the volume's node is told."""
    volume = await row(world, name)
    asked = {"node_id": volume.node_id, "epoch": 1, "volume_id": volume.id, **changes}
    told = await Nodes(world.control, world.sealer).volume_key(VolumeKeyRequest(**asked))
    return told.key.reveal()


async def data_keys(world: World) -> set[str]:
    """Ids of the volumes that have one."""
    found = await world.control.read(lambda tx: tx.data_keys.select())
    return {each.subject for each in found if each.purpose == "volume"}


async def without_encryption(world: World) -> None:
    """The nodes' backend encrypts nothing."""

    def work(unit: Unit) -> None:
        for node in unit.tx.nodes.select():
            backends = tuple(replace(backend, encryption=False) for backend in node.facts.backends)
            unit.tx.nodes.update(replace(node, facts=replace(node.facts, backends=backends)))

    await world.commit(work)


class TestAtItsCreation:
    async def test_it_is_encrypted_unless_somebody_says_otherwise(self, world: World) -> None:
        assert (await made(world))["encrypted"] is True
        assert (await made(world, "plain", encrypted=False))["encrypted"] is False
        assert (await made(world, "sealed", encrypted=True))["encrypted"] is True
        listed = (await world.get("/v1/volumes")).json["data"]
        assert {each["name"]: each["encrypted"] for each in listed} == {"data": True, "plain": False, "sealed": True}
        plain = await row(world, "plain")
        assert plain.sealed_key is None
        assert await data_keys(world) == {(await row(world)).id, (await row(world, "sealed")).id}

    async def test_while_the_kms_is_away_none_is_made(self, world: World) -> None:
        world.kms.available = False
        answer = await world.post("/v1/volumes", {"name": "data", "size": "1gb"})
        assert answer.status == 503
        assert (await world.get("/v1/volumes")).json["data"] == []
        assert (await world.post("/v1/volumes", {"name": "p", "size": "1gb", "encrypted": False})).status == 201

    async def test_what_is_refused_leaves_no_key_behind(self, world: World) -> None:
        await made(world)
        assert (await world.post("/v1/volumes", {"name": "data", "size": "1gb"})).status == 409
        assert (await world.post("/v1/volumes", {"name": "x", "size": "1gb", "encrypted": "yes"})).status == 400
        assert await data_keys(world) == {(await row(world)).id}

    async def test_asked_twice_with_one_key_it_is_made_once(self, world: World) -> None:
        first, second = [
            await world.made("/v1/volumes", {"name": "data", "size": "1gb"}, headers={"idempotency-key": "one"})
            for _ in range(2)
        ]
        assert first == second
        assert await data_keys(world) == {first["id"]}

    async def test_where_no_node_encrypts_it_is_refused_and_never_made_in_clear_by_itself(self, world: World) -> None:
        await without_encryption(world)
        for body in ({}, {"encrypted": True}):
            answer = await world.post("/v1/volumes", {"name": "data", "size": "1gb", **body})
            assert (answer.status, answer.code) == (422, "cannot-be-encrypted")
            assert answer.json["errors"][0]["field"] == "encrypted"
        assert (await made(world, encrypted=False))["encrypted"] is False

    async def test_an_app_that_mounts_it_needs_a_node_that_encrypts(self, world: World) -> None:
        await made(world)
        await without_encryption(world)
        world.images.publish(IMAGE)
        await world.made("/v1/apps", {"name": "shop"})
        mounts = {"mounts": [{"source": "data", "destination": "/data"}]}
        answer = await world.post("/v1/apps/shop/deployments", {"image": IMAGE, "port": 8080, "config": mounts})
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, "mounts")
        assert "encrypted" in answer.json["errors"][0]["message"]


class TestACopy:
    async def test_it_has_the_same_key_and_a_data_key_of_its_own(self, world: World) -> None:
        snapshot = await homed(world)
        copy = await world.made("/v1/volumes/data/restore", {"snapshot": snapshot, "to": "copy"})
        other = await world.made("/v1/volumes", {"name": "other", "snapshot": snapshot})
        assert copy["encrypted"] is other["encrypted"] is True
        assert await key_of(world) == await key_of(world, "copy") == await key_of(world, "other")
        sealed = [(await row(world, name)).sealed_key for name in ("data", "copy", "other")]
        assert len({each.ciphertext for each in sealed if each}) == len({each.key_id for each in sealed if each}) == 3

    async def test_it_is_what_its_snapshot_is_and_nothing_else(self, world: World) -> None:
        sealed, plain = await homed(world), await homed(world, "plain", encrypted=False)
        for snapshot, asked in ((sealed, False), (plain, True)):
            answer = await world.post("/v1/volumes", {"name": "copy", "snapshot": snapshot, "encrypted": asked})
            assert (answer.status, answer.json["errors"][0]["field"]) == (422, "encrypted")
        made = await world.made("/v1/volumes", {"name": "copy", "snapshot": plain})
        assert made["encrypted"] is False


class TestItsKey:
    async def test_the_node_is_ordered_it_without_its_key_and_asks_for_that(self, world: World) -> None:
        await homed(world)
        [order] = (await world.control.read(lambda tx: assignments(tx, world.node.id))).volumes
        assert order.encrypted
        assert len(await key_of(world)) == 32
        audit = (await world.get("/v1/audit", query={"filter[action]": "volumes:unlock"}, token=ADMIN)).json["data"]
        volume = await row(world)
        assert [(each["actor"], each["resource"]) for each in audit] == [(world.node.id, volume.id)]

    async def test_it_is_given_to_no_other_node_epoch_or_volume(self, world: World) -> None:
        await homed(world)
        await made(world, "nowhere")
        await homed(world, "plain", encrypted=False)
        for changes, error in (
            ({"node_id": "node_x"}, ForbiddenError),
            ({"epoch": 2}, UnavailableError),
            ({"volume_id": "vol_x"}, NotFoundError),
            ({"volume_id": (await row(world, "nowhere")).id}, NotFoundError),
            ({"volume_id": (await row(world, "plain")).id}, NotFoundError),
        ):
            with pytest.raises(error):
                await key_of(world, **changes)

    async def test_one_that_was_moved_to_another_volume_does_not_open(self, world: World) -> None:
        await homed(world)
        await homed(world, "other")
        stolen = (await row(world, "other")).sealed_key
        mine = await row(world)
        await world.commit(lambda unit: unit.tx.volumes.update(replace(mine, sealed_key=stolen)))
        with pytest.raises(ConflictError) as caught:
            await key_of(world)
        assert caught.value.code == "seal-broken"

    async def test_it_moves_with_the_master_key_and_holds_up_its_retirement_until_then(self, world: World) -> None:
        await homed(world)
        before, old = await key_of(world), await world.sealer.current()
        await world.made(f"{KEYS}/actions/rotate", token=ADMIN)
        refused = await world.post(f"{KEYS}/actions/retire", {"name": old}, token=ADMIN)
        assert (refused.status, refused.code) == (409, "master-key-in-use")
        assert await Rewrapper(world.control, world.sealer).step() == 1
        retired = await world.post(f"{KEYS}/actions/retire", {"name": old}, token=ADMIN)
        assert retired.status == 200
        world.sealer._cache.clear()
        assert await key_of(world) == before


class TestItsEnd:
    async def test_with_the_order_to_delete_it_the_key_is_gone_whatever_its_node_says(self, world: World) -> None:
        snapshot = await homed(world)
        await world.commit(lambda unit: unit.tx.snapshots.delete(snapshot))
        assert (await world.call("DELETE", "/v1/volumes/data")).status == 202
        shown = (await world.get("/v1/volumes/data")).json
        assert (shown["state"], shown["encrypted"]) == ("deleting", True)
        assert await data_keys(world) == set()
        with pytest.raises(NotFoundError):
            await key_of(world)

    async def test_one_that_is_lost_or_was_nowhere_leaves_no_key(self, world: World) -> None:
        await made(world)
        assert (await world.call("DELETE", "/v1/volumes/data")).status == 202
        await homed(world, "lost")
        volume = await row(world, "lost")
        gone = replace(volume, observed=ObservedVolume(reason="removed", reason_code=LOST))
        await world.commit(lambda unit: unit.tx.volumes.update(restated(gone)))
        with pytest.raises(NotFoundError):
            await key_of(world, "lost")
        assert (await world.call("DELETE", "/v1/volumes/lost")).status == 202
        assert await data_keys(world) == set()

    async def test_a_deletion_that_is_undone_leaves_the_key(self, world: World) -> None:
        snapshot = await homed(world)
        await world.commit(lambda unit: unit.tx.snapshots.delete(snapshot))
        before = await key_of(world)
        volume = await row(world)

        def work(unit: Unit) -> None:
            delete_volume(unit, volume)
            raise ConflictError("no", "no")

        with pytest.raises(ConflictError):
            await world.commit(work)
        assert await key_of(world) == before

    async def test_nothing_that_is_left_opens_its_old_image(self, world: World, tmp_path: Path) -> None:
        """Another volume is there, and the KMS with its master key, and what was copied of the disk."""
        snapshot = await homed(world)
        await homed(world, "other")
        await made(world, "copy", snapshot=snapshot)
        image = tmp_path / "old.img"
        image.write_bytes(luks.make_header(await key_of(world), os.urandom)[0])
        assert opened(image, await key_of(world))
        assert await keys_that_open(world, image) == 2, "its own, and the copy's"
        for name in ("copy", "data"):
            volume = await row(world, name)
            await without_snapshots(world, volume)
            assert (await world.call("DELETE", f"/v1/volumes/{name}")).status == 202
        assert await data_keys(world) == {(await row(world, "other")).id}
        assert await keys_that_open(world, image) == 0


async def without_snapshots(world: World, volume: Volume) -> None:
    def work(unit: Unit) -> None:
        for snapshot in unit.tx.snapshots.select(eq("volume_id", volume.id)):
            unit.tx.snapshots.delete(snapshot.id)

    await world.commit(work)


def opened(image: Path, key: bytes) -> bool:
    with image.open("rb") as file, suppress(EngineConflictError):
        return bool(luks.master_key(file.fileno(), key))
    return False


async def keys_that_open(world: World, image: Path) -> int:
    """How many of all values that can be had from the database and the KMS open an image."""
    rows = await world.control.read(lambda tx: tx.data_keys.select())
    unwrapped = [
        await world.kms.unwrap(WrappedKey(each.master_key, each.wrapped), each.label.context()) for each in rows
    ]
    sealed = [
        (each.sealed_key, each.id, each.project_id) for each in await world.control.read(lambda tx: tx.volumes.select())
    ]
    values: list[Sensitive] = list(unwrapped)
    for key, id_, project in sealed:
        if key is not None:
            bound = Label(
                purpose="volume", subject=id_, organization_id=world.project.organization_id, project_id=project
            )
            values.append(await Sealer(world.control, world.kms).unseal(key, bound))
    return sum(opened(image, each.reveal()) for each in values)
