"""Events reach the webhooks that want them: at least once, in order as far as retries allow, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shellwego.control.deliveries import dispatch
from shellwego.control.loops import webhooks as webhooks_loop
from shellwego.control.loops.webhooks import SHARE
from shellwego.control.marks import DISPATCHED, mark
from shellwego.control.unit import Unit
from shellwego.control.webhooks import WebhookWish, delete_webhook, redeliver, test_webhook, update_webhook
from shellwego.core.envelope import SealedValue
from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, QuotaError
from shellwego.core.webhooks import (
    DISABLE_AFTER_S,
    KEPT,
    MAX_RETRIES,
    MAX_WAITING,
    MAX_WEBHOOKS,
    DeliveryState,
    Webhook,
    signature,
)
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import eq
from shellwego.ports.webhooks import Outcome, Shipment
from tests.control.webhook_world import NETWORKS, SECRET, HookWorld

send_test = test_webhook
del test_webhook  # pytest would take it for a test


@pytest.fixture
async def world() -> AsyncIterator[HookWorld]:
    made = HookWorld()
    await made.start()
    yield made
    await made.stop()


async def test_an_event_reaches_the_receiver_signed_as_the_contract_says(world: HookWorld) -> None:
    webhook, receiver = await world.hook()
    await world.emit("app.created")
    [post] = receiver.posts
    assert receiver.body()["type"] == "app.created"
    assert receiver.body()["data"] == {"name": "shop"}
    [delivery] = await world.deliveries(webhook)
    timestamp = int(post.headers["X-ShellWeGo-Timestamp"])
    assert post.headers["X-ShellWeGo-Signature"] == signature(SECRET, timestamp, post.body.decode())
    assert post.headers["X-ShellWeGo-Event"] == "app.created"
    assert post.headers["X-ShellWeGo-Delivery"] == delivery.id
    assert timestamp == int(world.clock.now())
    assert (delivery.state, len(delivery.attempts), delivery.attempts[0].status) == (DeliveryState.DELIVERED, 1, 200)


async def test_only_events_of_its_scope_and_types_reach_a_webhook(world: HookWorld) -> None:
    _, everything = await world.hook("app.*", "instance.*", project="")
    _, project = await world.hook("app.*")
    _, foreign = await world.hook(organization="org_2", project="prj_2")
    await world.emit("app.created", "instance.started")
    await world.emit("app.created", project="prj_other")
    await world.emit("app.created", organization="org_2", project="prj_2")
    await world.emit("node.ready", organization="", project="")
    assert [everything.body(n)["type"] for n in range(3)] == ["app.created", "instance.started", "app.created"]
    assert [project.body(n)["type"] for n in range(len(project.posts))] == ["app.created"]
    assert len(foreign.posts) == 1
    assert foreign.body()["organization_id"] == "org_2"


async def test_first_attempts_come_in_the_order_of_events(world: HookWorld) -> None:
    _, receiver = await world.hook()
    for _ in range(3):
        await world.emit(*("app.changed" for _ in range(150)))
    assert len(receiver.seqs) == 450
    assert receiver.seqs == sorted(receiver.seqs)


async def test_a_failure_is_tried_again_later_and_holds_up_nothing(world: HookWorld) -> None:
    webhook, receiver = await world.hook(status=500)
    await world.emit("app.first")
    receiver.status = 200
    await world.emit("app.second")
    assert await world.states(webhook) == [DeliveryState.WAITING, DeliveryState.DELIVERED]
    await world.clock.advance(9)
    assert len(receiver.posts) == 2
    await world.clock.advance(3)
    assert [receiver.body(n)["type"] for n in range(3)] == ["app.first", "app.second", "app.first"]
    [first, _] = await world.deliveries(webhook)
    assert [attempt.status for attempt in first.attempts] == [500, 200]
    assert first.state is DeliveryState.DELIVERED


async def test_a_delivery_fails_when_its_retries_are_spent_and_can_be_sent_again(
    world: HookWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellwego.core.webhooks.GROWTH", 1.5)
    webhook, receiver = await world.hook(status=None)
    await world.emit("app.created")
    await world.clock.advance(200)
    [failed] = await world.deliveries(webhook)
    assert (failed.state, len(failed.attempts), len(receiver.posts)) == (
        DeliveryState.FAILED,
        1 + MAX_RETRIES,
        1 + MAX_RETRIES,
    )
    receiver.status = 200
    again = await world.control.commit(lambda unit: redeliver(unit, webhook, failed.id))
    await world.clock.advance(0)
    assert receiver.posts[-1].body == receiver.posts[0].body
    assert (again.event_id, again.id != failed.id) == (failed.event_id, True)
    assert await world.states(webhook) == [DeliveryState.FAILED, DeliveryState.DELIVERED]


async def test_a_webhook_that_only_fails_for_a_day_is_switched_off_with_an_event(
    world: HookWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellwego.core.webhooks.DISABLE_AFTER_S", DISABLE_AFTER_S / 1000)
    webhook, receiver = await world.hook(status=503)
    _, watcher = await world.hook("webhook.disabled")
    await world.emit("app.changed")
    await world.clock.advance(80)
    assert (await world.stored(webhook)).active
    await world.emit("app.changed")
    await world.clock.advance(11)
    await world.published()
    stored = await world.stored(webhook)
    assert not stored.active
    assert "a day" in stored.disabled_reason
    assert DeliveryState.WAITING not in await world.states(webhook)
    assert watcher.body()["resource"] == webhook.id
    posts = len(receiver.posts)
    await world.emit("app.changed")
    await world.clock.advance(30)
    assert len(receiver.posts) == posts


async def test_one_success_ends_the_time_of_failing(world: HookWorld) -> None:
    webhook, receiver = await world.hook(status=503)
    await world.emit("app.first")
    assert (await world.stored(webhook)).failing_since is not None
    receiver.status = 200
    await world.clock.advance(20)
    assert (await world.stored(webhook)).failing_since is None


async def test_switched_on_again_it_hears_of_what_happens_from_then_on(world: HookWorld) -> None:
    webhook, receiver = await world.hook("app.*")

    async def switch(active: bool) -> None:
        def work(unit: Unit) -> Webhook:
            current = unit.tx.webhooks.get(webhook.id)
            assert current is not None
            return update_webhook(unit, current, WebhookWish(active=active), NETWORKS)

        await world.control.commit(work)
        await world.published()

    receiver.status = 500
    await world.emit("app.before")
    await switch(False)
    assert await world.states(webhook) == [DeliveryState.FAILED]
    await world.emit("app.meanwhile")
    receiver.status = 200
    await switch(True)
    await world.emit("app.after")
    assert [receiver.body(n)["type"] for n in range(len(receiver.posts))] == ["app.before", "app.after"]


async def test_a_test_is_sent_even_where_the_webhook_is_off(world: HookWorld) -> None:
    webhook, receiver = await world.hook()

    def work(unit: Unit) -> None:
        off = update_webhook(unit, webhook, WebhookWish(active=False), NETWORKS)
        send_test(unit, off)

    await world.control.commit(work)
    await world.clock.advance(0)
    assert (receiver.body()["type"], receiver.body()["seq"]) == ("webhook.test", 0)


async def test_a_receiver_that_is_too_far_behind_is_switched_off(world: HookWorld) -> None:
    webhook, _ = await world.hook(status=500)
    for _ in range(MAX_WAITING // 100 + 1):
        await world.emit(*("app.changed" for _ in range(100)))
    stored = await world.stored(webhook)
    assert not stored.active
    assert "too slow" in stored.disabled_reason
    with_more = await world.deliveries(webhook)
    assert len(with_more) <= MAX_WAITING


async def test_no_more_deliveries_are_kept_than_may_be(world: HookWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellwego.control.deliveries.KEPT", 10)
    assert KEPT > MAX_WAITING
    webhook, receiver = await world.hook()
    for _ in range(30):
        await world.emit("app.changed")
    assert len(receiver.posts) == 30
    kept = await world.deliveries(webhook)
    assert len(kept) <= 10
    assert kept[-1].seq == max(receiver.seqs)


async def test_a_receiver_that_hangs_holds_up_no_other(world: HookWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = asyncio.Event()
    send = world.sender.send

    async def hanging(shipment: Shipment) -> Outcome:
        if shipment.url.endswith(":8001/"):
            await hang.wait()
        return await send(shipment)

    monkeypatch.setattr(world.sender, "send", hanging)
    await world.hook("app.*")
    _, other = await world.hook("app.*")
    await world.emit("app.created")
    await world.clock.advance(5)
    assert len(other.posts) == 1
    hang.set()


async def test_slow_receivers_of_one_organization_hold_up_no_other_organization(
    world: HookWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, under_way, most = world.sender.send, 0, 0

    async def slow(shipment: Shipment) -> Outcome:
        nonlocal under_way, most
        if b"org_slow" in shipment.body:
            under_way += 1
            most = max(most, under_way)
            await world.clock.sleep(10)
            under_way -= 1
        return await send(shipment)

    monkeypatch.setattr(world.sender, "send", slow)
    for project in ("prj_a", "prj_b"):
        for _ in range(MAX_WEBHOOKS):
            await world.hook("app.*", organization="org_slow", project=project)
        await world.emit("app.created", "app.changed", organization="org_slow", project=project)
    webhook, receiver = await world.hook("app.*")
    await world.emit(*("app.changed" for _ in range(30)))
    await world.clock.advance(1)
    assert len(receiver.posts) == 30
    assert set(await world.states(webhook)) == {DeliveryState.DELIVERED}
    await world.clock.advance(300)
    assert most == SHARE
    assert await world.control.read(lambda tx: tx.deliveries.count(eq("state", DeliveryState.WAITING.value))) == 0


async def test_what_was_deleted_while_it_waited_for_its_turn_is_not_sent(
    world: HookWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, answer = world.sender.send, asyncio.Event()

    async def hanging(shipment: Shipment) -> Outcome:
        await answer.wait()
        return await send(shipment)

    monkeypatch.setattr(world.sender, "send", hanging)
    hooks = [await world.hook("app.*") for _ in range(SHARE + 1)]
    await world.emit("app.created")

    def work(unit: Unit) -> None:
        for webhook, _ in hooks:
            delete_webhook(unit, replace(webhook))

    await world.control.commit(work)
    answer.set()
    await world.clock.advance(1)
    assert [len(receiver.posts) for _, receiver in hooks].count(1) == SHARE


async def test_a_crash_in_an_attempt_costs_a_second_delivery_and_never_one(
    world: HookWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook, receiver = await world.hook()
    await world.stop()
    await world.emit("app.created")
    store = world.control.store
    real = store.transact

    async def dying(fn: Any) -> Any:
        if receiver.posts:
            raise _KilledError
        return await real(fn)

    with monkeypatch.context() as patch:
        patch.setattr(store, "transact", dying)
        loop = asyncio.ensure_future(world.loop().run())
        await world.clock.advance(0)
        with pytest.raises(ExceptionGroup):
            await loop
    assert await world.states(webhook) == [DeliveryState.WAITING]
    await world.start()
    assert len(receiver.posts) == 2
    assert receiver.posts[0].body == receiver.posts[1].body
    assert await world.states(webhook) == [DeliveryState.DELIVERED]


class _KilledError(Exception):
    pass


async def test_a_secret_that_does_not_open_is_told(world: HookWorld) -> None:
    webhook, receiver = await world.hook()
    await world.control.commit(
        lambda unit: unit.tx.webhooks.update(
            replace(webhook, sealed_secret=SealedValue(key_id="dek_none", nonce=b"", ciphertext=b""))
        )
    )
    await world.emit("app.created")
    [delivery] = await world.deliveries(webhook)
    assert receiver.posts == []
    assert "secret" in delivery.attempts[0].reason


async def test_a_deleted_webhook_takes_its_deliveries_along(world: HookWorld) -> None:
    webhook, _ = await world.hook()
    await world.emit("app.created")

    def work(unit: Unit) -> None:
        current = unit.tx.webhooks.get(webhook.id)
        assert current is not None
        delete_webhook(unit, current)

    await world.control.commit(work)
    assert await world.deliveries(webhook) == []
    await world.emit("app.created")
    assert await world.deliveries(webhook) == []


async def test_what_still_waits_or_is_anothers_is_not_sent_again(world: HookWorld) -> None:
    webhook, _ = await world.hook("app.*", status=500)
    other, _ = await world.hook("app.*")
    await world.emit("app.created")
    [waiting] = await world.deliveries(webhook)
    with pytest.raises(ConflictError):
        await world.control.commit(lambda unit: redeliver(unit, webhook, waiting.id))
    with pytest.raises(NotFoundError):
        await world.control.commit(lambda unit: redeliver(unit, other, waiting.id))


async def test_a_scope_has_a_bounded_number_of_webhooks_and_a_bad_wish_stores_none(world: HookWorld) -> None:
    for _ in range(MAX_WEBHOOKS):
        await world.hook()
    with pytest.raises(QuotaError):
        await world.hook()
    with pytest.raises(InvalidError) as refused:
        await world.hook("Bad Type", organization="org_2")
    assert {error.field for error in refused.value.errors} == {"events"}
    assert await world.control.read(lambda tx: tx.webhooks.count(eq("organization_id", "org_2"))) == 0


async def test_without_webhooks_a_long_past_is_passed_over_at_once(world: HookWorld) -> None:
    await world.stop()
    await world.emit(*("app.changed" for _ in range(450)))
    await world.control.commit(dispatch)
    assert await world.control.read(lambda tx: mark(tx, DISPATCHED)) == 450


async def test_two_servers_on_one_database_deliver_each_event_once(tmp_path: Path) -> None:
    """On a real database and the real clock; one of them holds the lease."""
    store = open_sqlite(tmp_path / "state.db", SystemClock())
    world = HookWorld(store)
    clock = SystemClock()
    world.control = replace(world.control, clock=clock)
    webhook, receiver = await world.hook()
    servers = [
        asyncio.ensure_future(webhooks_loop.run(world.control, world.sender, world.sealer, holder=name))
        for name in ("one", "two")
    ]
    for _ in range(5):
        await world.emit(*("app.changed" for _ in range(4)))
    async with asyncio.timeout(20):
        while (await world.states(webhook)).count(DeliveryState.DELIVERED) < 20:  # noqa: ASYNC110 - asks the store
            await asyncio.sleep(0.02)
    for task in servers:
        task.cancel()
    await asyncio.gather(*servers, return_exceptions=True)
    await store.close()
    assert receiver.seqs == sorted(set(receiver.seqs))
    assert len(receiver.posts) == 20


async def test_an_answer_that_comes_after_the_webhook_was_switched_off_changes_nothing_more(
    world: HookWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = asyncio.Event()
    send = world.sender.send

    async def late(shipment: Shipment) -> Outcome:
        await answer.wait()
        return await send(shipment)

    monkeypatch.setattr(world.sender, "send", late)
    webhook, receiver = await world.hook(status=500)
    await world.emit("app.created")
    await world.control.commit(lambda unit: update_webhook(unit, webhook, WebhookWish(active=False), NETWORKS))
    before = await world.deliveries(webhook)
    answer.set()
    await world.clock.advance(60)
    assert len(receiver.posts) == 1
    assert await world.deliveries(webhook) == before
