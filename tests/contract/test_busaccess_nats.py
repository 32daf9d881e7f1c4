"""The contract of access to the bus on a real NATS server, and a thief of a pass, who speaks its protocol himself."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from shellwego.core.errors import UnavailableError
from shellwego.core.nkeys import NKey
from shellwego.drivers.bus.nats import NatsBus, NatsSite, open_nats
from shellwego.drivers.bus.natsstream import STREAM
from shellwego.drivers.busaccess.authority import new_authority
from shellwego.drivers.busaccess.nats import NatsBusAccess
from shellwego.drivers.busaccess.tokens import LISTENER_SUBSCRIPTIONS, user_token
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.natslink import Login, close, connect, settle
from shellwego.ports.bus import Bus
from shellwego.ports.busaccess import PASS_S, BusPass
from shellwego.wire import subjects
from tests.contract.busaccess_contract import MINE, OTHER, BusAccessContract, user_key
from tests.contract.host_rig import eventually
from tests.contract.nats_server import NatsServer, running_nats

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def shared() -> Iterator[NatsServer]:
    with running_nats() as server:
        yield server


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with running_nats() as server:
        yield server


@dataclass(slots=True)
class NatsSiteOfTests:
    """See `busaccess_contract.Site`."""

    bus: NatsBus
    access: NatsBusAccess
    entered: list[NatsBus] = field(default_factory=list)

    async def enter(self, admitted: BusPass, key: NKey) -> Bus:
        site = NatsSite(
            urls=admitted.urls,
            certificate=admitted.certificate,
            login=lambda: Login(admitted.token, key),
            speaks=True,  # he tries
        )
        bus = await open_nats(site)
        self.entered.append(bus)
        return bus

    def inside(self, bus: Bus) -> bool:
        assert isinstance(bus, NatsBus)
        return bus.connected

    async def now(self) -> float:
        return time.time()

    async def let_pass(self, seconds: float) -> None:
        """It passes by itself, while what is to come is waited for."""


@pytest.fixture
async def site(shared: NatsServer) -> AsyncIterator[NatsSiteOfTests]:
    bus = await open_nats(shared.site())
    site = NatsSiteOfTests(bus, NatsBusAccess(shared.authority, SystemClock()))
    yield site
    for each in [*site.entered, bus]:
        await each.close()


class TestNatsBusAccess(BusAccessContract):
    deadline_s = 40.0


@dataclass(slots=True)
class Intruder:
    """Who stole a node's pass and seed, and sends what he likes."""

    client: Client
    refused: list[str] = field(default_factory=list)
    heard: list[Msg] = field(default_factory=list)

    async def listen(self, subject: str) -> None:
        async def hear(message: Msg) -> None:
            self.heard.append(message)

        await self.client.subscribe(subject, cb=hear)
        await settle(self.client)

    async def say(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        await self.client.publish(subject, payload, reply=reply)
        await settle(self.client)


@pytest.fixture
async def intruder(shared: NatsServer, site: NatsSiteOfTests) -> AsyncIterator[Intruder]:
    key, refused = user_key(), list[str]()
    admitted = site.access.admit(MINE, key.public)

    async def note(error: Exception) -> None:
        refused.append(str(error))

    client = await connect(admitted.urls[0], admitted.certificate, Login(admitted.token, key), noted=note)
    yield Intruder(client, refused)
    await close(client)


UNHEARD = [
    ">",
    "*",
    "swg.>",
    "swg.*.*.*",
    f"swg.node.{OTHER}.>",
    "swg.node.*.assignments",
    "swg.routes",
    "_INBOX.>",
    "$SYS.>",
    "$SYS.ACCOUNT.*.CONNECT",
    "$JS.>",
    "$JS.EVENT.>",
    f"$JS.API.STREAM.INFO.{STREAM}",
]


async def test_a_stolen_pass_listens_to_nothing_but_its_own(intruder: Intruder) -> None:
    for number, subject in enumerate(UNHEARD, start=1):
        await intruder.listen(subject)
        assert len(intruder.refused) == number, subject
        assert "permissions violation for subscription" in intruder.refused[-1].lower()


UNSAID = [
    (f"swg.node.{MINE}.assignments", b""),
    (f"swg.node.{OTHER}.assignments", b""),
    ("swg.routes", b""),
    ("swg.app.app_1", b""),
    (f"_INBOX.{MINE}", b""),
    ("$JS.API.INFO", b""),
    ("$JS.API.STREAM.NAMES", b""),
    (f"$JS.API.STREAM.PURGE.{STREAM}", b""),
    (f"$JS.API.STREAM.DELETE.{STREAM}", b""),
    (f"$JS.API.STREAM.MSG.GET.{STREAM}", b'{"seq":1}'),
    (f"$JS.API.DIRECT.GET.{STREAM}", b'{"seq":1}'),
    (
        f"$JS.API.CONSUMER.CREATE.{STREAM}",
        json.dumps(
            {
                "stream_name": STREAM,
                "config": {"deliver_subject": f"swg.node.{MINE}.x", "deliver_policy": "all", "ack_policy": "none"},
            }
        ).encode(),
    ),
    ("$JS.API.STREAM.CREATE.MINE", b'{"name":"MINE","subjects":["mine.>"]}'),
    ("$SYS.REQ.CLAIMS.UPDATE", b"x"),
    ("$SYS.REQ.SERVER.PING", b""),
]


async def test_a_stolen_pass_says_nothing_whatever_it_asks(intruder: Intruder, site: NatsSiteOfTests) -> None:
    answers = f"swg.node.{MINE}.answers"
    await intruder.listen(answers)
    assert intruder.refused == []
    async with site.bus.subscribe(">") as hints:
        for number, (subject, payload) in enumerate(UNSAID, start=1):
            await intruder.say(subject, payload, reply=answers)
            assert len(intruder.refused) == number, subject
            assert "permissions violation for publish" in intruder.refused[-1].lower()
        await site.bus.publish(subjects.EVENTS)
        async with asyncio.timeout(40):
            assert (await anext(hints)).subject == subjects.EVENTS
    assert intruder.heard == []


async def test_a_stolen_pass_has_few_subscriptions(intruder: Intruder) -> None:
    for _ in range(LISTENER_SUBSCRIPTIONS):
        await intruder.listen(f"swg.node.{MINE}.assignments")
    with suppress(NatsError):  # it is shut out for that, at once or a moment later
        await intruder.listen(f"swg.node.{MINE}.assignments")
    await eventually(lambda: intruder.client.is_closed, "the connection is cut")


async def entrance(server: NatsServer, token: str, key: NKey) -> bool:
    """Whether a login is let in."""
    authority = server.authority
    try:
        client = await connect(authority.urls[0], authority.certificate, Login(token, key))
    except NatsError:
        return False
    await close(client)
    return True


async def test_forged_passes_let_nobody_in(shared: NatsServer, site: NatsSiteOfTests) -> None:
    key, stranger = user_key(), new_authority((), "")
    everything = {"now": time.time(), "lifetime_s": 60.0}
    good = site.access.admit(MINE, key.public).token
    head, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    claims["nats"]["sub"]["allow"] = [">"]
    widened = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').rstrip(b"=").decode()
    forged = [
        "",
        f"{head}.{widened}.{signature}",
        f"{none}.{widened}.",
        f"{head}.{body}.{'A' * len(signature)}",
        user_token(stranger.account, key.public, "x", **everything),
        user_token(key, key.public, "x", **everything),
        user_token(shared.authority.operator, key.public, "x", **everything),
    ]
    assert await entrance(shared, good, key)
    assert [await entrance(shared, token, key) for token in forged] == [False] * len(forged)


async def test_what_was_revoked_is_known_after_a_crash_of_the_bus(server: NatsServer) -> None:
    access = NatsBusAccess(server.authority, SystemClock())
    gone, stays = user_key(), user_key()
    passes = {key.public: access.admit(MINE, key.public).token for key in (gone, stays)}
    await access.revoke({gone.public: time.time()})
    server.kill()
    server.start()
    assert not await entrance(server, passes[gone.public], gone)
    assert await entrance(server, passes[stays.public], stays)


async def test_the_list_forgets_whom_nothing_could_let_in_any_more(server: NatsServer) -> None:
    class DaysLater(SystemClock):
        def now(self) -> float:
            return super().now() + 3 * PASS_S

    access, later = (NatsBusAccess(server.authority, clock) for clock in (SystemClock(), DaysLater()))
    first, second = user_key(), user_key()
    tokens = [access.admit(MINE, key.public).token for key in (first, second)]
    await access.revoke({first.public: time.time()})
    await later.revoke({first.public: time.time(), second.public: time.time() + 3 * PASS_S})
    assert await entrance(server, tokens[0], first), "days later its passes have ended anyhow"
    assert not await entrance(server, tokens[1], second)


async def test_of_keys_that_are_revoked_at_once_none_is_lost(server: NatsServer) -> None:
    access = NatsBusAccess(server.authority, SystemClock())
    keys = [user_key() for _ in range(6)]
    tokens = [access.admit(MINE, key.public).token for key in keys]
    await asyncio.gather(*(access.revoke({key.public: time.time()}) for key in keys))
    assert [await entrance(server, token, key) for token, key in zip(tokens, keys, strict=True)] == [False] * 6


async def test_a_bus_that_is_away_cannot_be_told_who_is_revoked(server: NatsServer) -> None:
    access = NatsBusAccess(server.authority, SystemClock())
    server.kill()
    with pytest.raises(UnavailableError) as refused:
        await access.revoke({user_key().public: time.time()})
    assert refused.value.code == "bus-unavailable"
