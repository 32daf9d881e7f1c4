"""The master key over the API: told, rotated, retired; for operators of the platform only."""

from __future__ import annotations

from shellwego.control.loops.rewrap import Rewrapper
from shellwego.control.sealing import Sealer
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.local import GivenKms
from tests.api.api_world import ADMIN, World

KEYS = "/v1/system/master-keys"


async def test_a_rotation_from_its_order_to_the_old_keys_end(world: World) -> None:
    await world.made("/v1/secrets", {"name": "A", "value": "x"})
    world.token = ADMIN
    listed = (await world.get(KEYS)).json
    old = listed["current"]
    assert [(key["name"], key["data_keys"]) for key in listed["data"]] == [(old, 1)]
    rotated = await world.post(f"{KEYS}/actions/rotate")
    assert (rotated.status, rotated.json["current"]) == (202, True)
    refused = await world.post(f"{KEYS}/actions/retire", {"name": old})
    assert (refused.status, refused.code) == (409, "master-key-in-use")
    await Rewrapper(world.control, world.sealer).step()
    retired = await world.made(f"{KEYS}/actions/retire", {"name": old})
    assert (retired["data_keys"], retired["retired_at"] is not None) == (0, True)
    assert (await world.post(f"{KEYS}/actions/retire", {"name": "other"})).status == 404


async def test_a_rotation_asked_twice_with_one_key_is_one(world: World) -> None:
    headers = {"idempotency-key": "k"}
    first = await world.post(f"{KEYS}/actions/rotate", token=ADMIN, headers=headers)
    again = await world.post(f"{KEYS}/actions/rotate", token=ADMIN, headers=headers)
    assert again.content == first.content
    assert await world.kms.current() == first.json["name"]


async def test_who_may_not_rotate_rotates_nothing(world: World) -> None:
    before = await world.kms.current()
    assert (await world.post(f"{KEYS}/actions/rotate")).status == 403
    assert await world.kms.current() == before


async def test_keys_that_are_given_are_rotated_by_who_gives_them(world: World) -> None:
    world.app.state.context.sealer = Sealer(world.control, GivenKms([Sensitive(b"k" * 32)]))
    refused = await world.post(f"{KEYS}/actions/rotate", token=ADMIN)
    assert (refused.status, refused.code) == (409, "cannot-rotate")
