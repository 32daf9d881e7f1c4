"""The bus's contract on a real NATS server, and what its end, absence or silence costs: latency, no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from shellwego.drivers.bus import nats
from shellwego.drivers.bus.nats import NatsBus, open_nats
from shellwego.ports.bus import Bus, Hint
from tests.contract.bus_contract import BusContract
from tests.contract.nats_server import NatsServer, made_nats, running_nats

pytestmark = pytest.mark.real
DEADLINE_S = 40.0


@pytest.fixture(scope="module")
def shared() -> Iterator[NatsServer]:
    """For what does not stop it."""
    with running_nats() as server:
        yield server


@pytest.fixture
def server() -> Iterator[NatsServer]:
    """One of its own, not started yet."""
    with made_nats() as server:
        yield server


async def becomes(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens elsewhere
            await asyncio.sleep(0.01)


async def heard(hints: AsyncIterator[Hint], wanted: Hint) -> list[Hint]:
    """What comes up to this hint."""
    found: list[Hint] = []
    async with asyncio.timeout(DEADLINE_S):
        while wanted not in found:
            found.append(await anext(hints))
    return found


async def reaches(bus: Bus, hints: AsyncIterator[Hint], hint: Hint) -> None:
    """Published until it is heard: a connection that has just come may go once more, on a host that is busy."""
    hearing = asyncio.ensure_future(heard(hints, hint))
    while not hearing.done():
        await bus.publish(hint.subject, hint.payload)
        await asyncio.wait({hearing}, timeout=0.5)
    await hearing


class TestNatsBus(BusContract):
    deadline_s = DEADLINE_S

    @pytest.fixture
    async def bus(self, shared: NatsServer) -> AsyncIterator[Bus]:
        bus = await open_nats(shared.site())
        yield bus
        await bus.close()

    async def test_what_is_published_is_confirmed(self, bus: NatsBus) -> None:
        for number in range(100):
            await bus.publish("n", str(number).encode())
        await becomes(lambda: bus.unconfirmed == 0)

    async def test_a_listener_hears_the_hints_of_another_host(self, bus: NatsBus, shared: NatsServer) -> None:
        other = await open_nats(shared.site())
        async with other.subscribe("app.*") as hints:
            await bus.publish("app.app_1")
            assert await self.take(hints) == [Hint("app.app_1")]
        await other.close()


async def test_after_a_crash_of_the_bus_listeners_are_told_to_look_at_everything(server: NatsServer) -> None:
    server.start()
    speaker, listener = await open_nats(server.site()), await open_nats(server.site())
    with capture_logs() as lines:
        async with listener.subscribe("app.*") as hints:
            await speaker.publish("app.app_1", b"before")
            assert await heard(hints, Hint("app.app_1", b"before")) == [Hint("app.app_1", b"before")]
            await becomes(lambda: speaker.unconfirmed == 0)  # it may be heard before its publisher knows
            server.kill()
            await becomes(lambda: not speaker.connected and not listener.connected)
            for _ in range(50):
                await speaker.publish("app.app_1", b"during")
            assert speaker.unconfirmed == 1, "equal hints that wait are one"
            server.start()
            assert Hint("app.*", missed=True) in await heard(hints, Hint("app.*", missed=True))
            await becomes(lambda: speaker.connected and speaker.unconfirmed == 0)
            await reaches(speaker, hints, Hint("app.app_1", b"after"))
            await becomes(lambda: speaker.unconfirmed == 0)
    told = [line["event"] for line in lines if line["event"] == "bus.unreachable"]
    assert 1 <= len(told) <= 8, "for each of the two, once for a reason"
    await speaker.close()
    await listener.close()


async def test_a_hint_that_only_its_publisher_could_not_send_reaches_the_listeners_later(server: NatsServer) -> None:
    speaker = await open_nats(server.site())
    await speaker.publish("routes", b"early")
    server.start()
    listener = await open_nats(server.site())
    async with listener.subscribe("routes") as hints:
        if not speaker.connected:
            assert Hint("routes", b"early") in await heard(hints, Hint("routes", b"early"))
        await becomes(lambda: speaker.unconfirmed == 0)
    await speaker.close()
    await listener.close()


async def test_without_a_bus_the_platform_starts_and_says_so(server: NatsServer) -> None:
    with capture_logs() as lines:
        bus = await open_nats(server.site())
    assert not bus.connected
    (told,) = [line for line in lines if line["event"] == "bus.unreachable"]
    assert told["log_level"] == "warning"
    async with bus.subscribe("routes") as hints:
        server.start()
        assert await heard(hints, Hint("routes", missed=True)) == [Hint("routes", missed=True)]
        await bus.publish("routes", b"1")
        assert await heard(hints, Hint("routes", b"1")) == [Hint("routes", b"1")]
    await bus.close()


async def test_a_publish_that_is_not_answered_is_unknown_and_holds_up_nobody(server: NatsServer) -> None:
    server.start()
    bus = NatsBus(server.site(), retry_s=0.2)
    await bus.decided()
    await bus.publish("n")
    await becomes(lambda: bus.unconfirmed == 0)
    async with bus.subscribe("n") as hints:
        server.pause()
        with capture_logs() as lines:
            async with asyncio.timeout(DEADLINE_S):
                for number in range(3000):
                    await bus.publish("n", str(number).encode())
                await becomes(lambda: any(line["event"] == "bus.publish_unknown" for line in lines))
            assert bus.unconfirmed == 3000
            server.go_on()
            await heard(hints, Hint("n", b"2999"))
            await becomes(lambda: bus.unconfirmed == 0)
        assert sum(line["event"] == "bus.publish_unknown" for line in lines) == 1
    await bus.close()


async def test_who_is_cancelled_ends_though_the_library_swallows_it(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nats-py does, now and then, where it waits for the server: who subscribed would then go on for good."""
    server.start()
    bus = await open_nats(server.site())
    waits = asyncio.Event()

    async def swallowing(_: object) -> None:
        waits.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async def listen() -> None:
        async with bus.subscribe("node.*") as hints:
            async for _ in hints:
                pass

    monkeypatch.setattr(nats, "settle", swallowing)
    task = asyncio.create_task(listen())
    await waits.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
    await bus.close()


@pytest.mark.parametrize("more", ["", ',"auth_required":true'])
async def test_a_server_that_asks_for_no_tls_is_told_no_secret_and_not_used(server: NatsServer, more: str) -> None:
    said: list[bytes] = []

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = '{"server_id":"x","version":"2.9.10","headers":true,"nonce":"abc","max_payload":1024'
        writer.write(f"INFO {info}{more}}}\r\nPONG\r\n".encode())
        said.append(await reader.read(1000))
        writer.close()
        await writer.wait_closed()

    serving = await asyncio.start_server(impostor, "127.0.0.1", server.port)
    bus = await open_nats(server.site())
    await becomes(lambda: bool(said))
    assert not bus.connected
    assert not any(word in words for words in said for word in (b"jwt", b"sig", b"SUB"))
    await bus.close()
    serving.close()
    await serving.wait_closed()


async def test_a_server_with_another_certificate_is_told_nothing(server: NatsServer) -> None:
    server.start()
    with made_nats() as other:
        site = server.site()
        with capture_logs() as lines:
            bus = await open_nats(type(site)(urls=site.urls, certificate=other.authority.certificate, login=site.login))
        assert not bus.connected
        assert "certificate verify failed" in str(lines).lower()
    await bus.close()
