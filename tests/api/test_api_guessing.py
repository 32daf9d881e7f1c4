"""Guessing at passwords: how it is slowed, and whom it does not disturb."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from shellwego.control.identity import make_identity
from shellwego.control.passwords import AT_ONCE, WAITING
from shellwego.core.errors import UnavailableError
from shellwego.drivers.passwords.memory import MemoryHasher
from tests.api.api_world import ADMIN, World
from tests.api.identity_world import ADMIN_EMAIL, NEW, later, set_password, sign_in


async def test_guessing_at_an_account_waits_longer_and_longer_from_wherever(world: World) -> None:
    await set_password(world)
    for number in range(6):
        assert (await sign_in(world, "wrong", client=f"192.0.2.{number}")).status == 401
    answer = await sign_in(world, client="192.0.2.99")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "too-many-attempts", "1")
    await later(world, 1.0)
    assert (await sign_in(world, "wrong", client="192.0.2.7")).status == 401
    assert (await sign_in(world, client="192.0.2.8")).headers["retry-after"] == "2"
    await later(world, 2.0)
    assert (await sign_in(world, client="192.0.2.8")).status == 201
    assert (await sign_in(world, "wrong", client="192.0.2.9")).status == 401, "success forgets the failures"


async def test_an_account_that_does_not_exist_waits_as_one_that_does(world: World) -> None:
    await set_password(world)
    told = []
    for email in (ADMIN_EMAIL, "nobody@x"):
        answers = [await sign_in(world, "wrong", email=email, client=f"192.0.2.{n}") for n in range(8)]
        told.append([answer.status for answer in answers])
    assert told[0] == told[1] == [401] * 6 + [429] * 2


async def test_strangers_do_not_lock_out_a_device_that_signed_in_before(world: World) -> None:
    await set_password(world)
    assert (await sign_in(world, client="198.51.100.7")).status == 201
    for number in range(7):
        await sign_in(world, "wrong", client=f"192.0.2.{number}")
    assert (await sign_in(world, client="203.0.113.1")).status == 429, "a stranger"
    assert (await sign_in(world, client="198.51.100.7")).status == 201, "the known device"
    assert (await sign_in(world, client="203.0.113.1")).status == 429, "its sign-in helps no stranger"


async def test_one_source_is_slowed_whatever_it_tries(world: World) -> None:
    answers = [await sign_in(world, "wrong", email=f"user{number}@x") for number in range(22)]
    assert [answer.status for answer in answers].count(429) == 1
    networks = [await sign_in(world, "x", email=f"six{n}@x", client=f"2001:db8::{n}") for n in range(22)]
    assert [answer.status for answer in networks].count(429) == 1, "a network of IPv6 is one source"


async def test_a_thousand_guesses_at_once_are_not_more_than_in_turn(world: World) -> None:
    await set_password(world)
    answers = await asyncio.gather(*(sign_in(world, f"guess {n}", client=f"192.0.2.{n}") for n in range(30)))
    assert sum(answer.status == 401 for answer in answers) <= 6


async def test_guessing_by_a_stolen_token_is_slowed_and_locks_nobody_out(world: World) -> None:
    await set_password(world)
    token = (await sign_in(world)).json["secret"]
    statuses = [(await set_password(world, NEW, token=token, old_password=f"guess {n}")).status for n in range(8)]
    assert statuses == [422] * 6 + [429] * 2
    assert (await sign_in(world, client="192.0.2.1")).status == 201


async def test_attempts_are_audited_without_what_was_typed(world: World) -> None:
    await set_password(world)
    await sign_in(world, "wrong secret", email="typed-my-password-here@x")
    await sign_in(world, "wrong secret")
    await sign_in(world)
    records = (await world.get("/v1/audit?filter[action]=auth:sign-in", token=ADMIN)).json["data"]
    admin = (await world.get("/v1/user", token=ADMIN)).json["id"]
    told = {(record["actor"], record["allowed"]) for record in records}
    assert told == {("anonymous", False), (admin, False), (admin, True)}
    assert all("from 127.0.0.1" in record["detail"] for record in records)
    assert "typed" not in str(records)


async def test_who_comes_when_too_many_hash_is_told_to_come_again(world: World) -> None:
    passwords = world.app.state.context.identity.passwords
    passwords._held = AT_ONCE + WAITING
    with pytest.raises(UnavailableError):
        await passwords.hash("x")
    answer = await sign_in(world)
    assert (answer.status, answer.code) == (503, "busy")


async def test_a_hash_of_weaker_parameters_is_made_anew_at_the_next_sign_in(world: World) -> None:
    await set_password(world)
    world.app.state.context.identity = make_identity(world.control, MemoryHasher(2), world.sealer)
    assert (await sign_in(world)).status == 201
    stored = await world.control.read(lambda tx: [each.password_hash for each in tx.credentials.select()])
    assert [each.partition("$")[0] for each in stored] == ["2"]
    assert (await sign_in(world)).status == 201


async def test_a_password_that_is_changed_while_it_is_compared_lets_nobody_in(world: World) -> None:
    await set_password(world)
    slow = SlowHasher()
    world.app.state.context.identity = make_identity(world.control, slow, world.sealer)
    attempt = asyncio.ensure_future(sign_in(world))
    await asyncio.to_thread(slow.comparing.wait, 30)

    def change(unit: Any) -> None:
        for each in unit.tx.credentials.select():
            unit.tx.credentials.update(replace(each, password_hash=slow.hash(NEW)))

    await world.commit(change)
    slow.go_on.set()
    assert (await attempt).status == 401


class SlowHasher(MemoryHasher):
    """Compares only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.comparing, self.go_on = threading.Event(), threading.Event()

    def matches(self, password: str, hashed: str) -> bool:
        self.comparing.set()
        assert self.go_on.wait(30)
        return super().matches(password, hashed)
