"""Calls over several servers, of which some are away, paused, restarted, or no servers at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import pytest

from shellwego.core.assignments import NodeReport
from shellwego.core.errors import InvalidError, MalformedError, UnavailableError
from shellwego.core.volumes import ObservedVolume
from shellwego.drivers.uplink.rota import MOST_RIVALS, Rivals, Rota
from shellwego.drivers.uplink.tls import TlsNodeUplink
from shellwego.wire import uplink
from shellwego.wire.codec import encode
from shellwego.wire.tls import server_context
from shellwego.wire.uplink import ReportAnswer, Side, check_protocol
from tests.contract.node_port import Rig, listening, port_of
from tests.contract.uplink_contract import REPORT, Recorder

T = TypeVar("T")
NOWHERE = "https://127.0.0.1:1"


async def test_a_call_goes_to_a_server_that_answers(rig: Rig) -> None:
    control = Recorder()
    urls = [NOWHERE, rig.port(control).url, "https://no-such-name.invalid:7081"]
    node = TlsNodeUplink(rig.channel(rig.identities.node(), *urls))
    for _ in range(5):
        assert await node.report(REPORT) == 3
    assert control.got == [REPORT] * 5


async def test_a_server_that_is_paused_gets_a_rival(rig: Rig) -> None:
    paused, other = rig.port(), rig.port()
    wire = rig.wire(paused)
    node = TlsNodeUplink(
        rig.channel(rig.identities.node(), wire.url, other.url, rival_s=0.05, call_s=60.0, jitter=lambda: 0.5)
    )
    for _ in range(3):
        await node.report(REPORT)
    wire.freeze()
    async with asyncio.timeout(30):
        for _ in range(3):
            assert await node.report(REPORT) == 3
    assert other.control.got


async def test_servers_that_are_all_busy_get_few_rivals(rig: Rig) -> None:
    """Ten calls wait at the first of two servers; the second is not made to bear all of them too."""
    release = asyncio.Event()
    busy = [rig.port(Recorder(holds_up=release)) for _ in range(2)]
    channel = rig.channel(
        rig.identities.node(), *(port.url for port in busy), rival_s=0.02, call_s=30.0, jitter=lambda: 0.5
    )
    calls = [asyncio.ensure_future(TlsNodeUplink(channel).report(REPORT)) for _ in range(10)]
    async with asyncio.timeout(20):
        while len(busy[0].control.got) < 10 or len(busy[1].control.got) < MOST_RIVALS:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert len(busy[1].control.got) == MOST_RIVALS
    release.set()
    assert await asyncio.gather(*calls) == [3] * 10


def test_rivals_come_back_in_time() -> None:
    rivals = Rivals()
    assert [rivals.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [rivals.take(5.1), rivals.take(5.2)] == [True, False]


async def test_a_server_that_fails_is_not_the_last_word(rig: Rig) -> None:
    broken, other = rig.port(Recorder(refusal=LookupError("a defect"))), rig.port()
    node = TlsNodeUplink(rig.channel(rig.identities.node(), broken.url, other.url))
    for _ in range(3):
        assert await node.report(REPORT) == 3


async def test_where_nobody_answers_it_is_told(rig: Rig) -> None:
    with pytest.raises(UnavailableError) as caught:
        await TlsNodeUplink(rig.channel(rig.identities.node(), NOWHERE)).report(REPORT)
    assert caught.value.code == "uplink-unavailable"


async def test_a_call_does_not_last_for_ever(rig: Rig) -> None:
    release = asyncio.Event()
    held = rig.port(Recorder(holds_up=release))
    with pytest.raises(UnavailableError) as caught:
        await TlsNodeUplink(rig.channel(rig.identities.node(), held.url, call_s=0.5)).report(REPORT)
    assert "0.5 s" in caught.value.message
    release.set()


async def test_a_server_that_is_started_again_is_used_again(rig: Rig) -> None:
    port = rig.port()
    node = TlsNodeUplink(rig.channel(rig.identities.node(), port.url))
    assert await node.report(REPORT) == 3
    await port.stop()
    with pytest.raises(UnavailableError):
        await node.report(REPORT)
    port.start()
    assert await node.report(REPORT) == 3


async def test_a_server_that_stops_ends_what_it_began(rig: Rig) -> None:
    release = asyncio.Event()
    port = rig.port(Recorder(holds_up=release))
    reporting = asyncio.ensure_future(TlsNodeUplink(rig.channel(rig.identities.node(), port.url)).report(REPORT))
    await port.control.arrived.wait()
    stopping = asyncio.ensure_future(port.stop())
    await asyncio.sleep(0)
    release.set()
    assert await reporting == 3
    await stopping


async def test_a_report_that_was_cut_in_the_middle_is_made_again(rig: Rig) -> None:
    """Its answer was lost; the control plane gets the same sequence twice, and takes it once."""
    port = rig.port()
    wire = rig.wire(port)
    wire.lose_answers()
    node = TlsNodeUplink(rig.channel(rig.identities.node(), wire.url, port.url, jitter=iter([0.0, 0.9] * 9).__next__))
    assert await node.report(REPORT) == 3
    assert port.control.got == [REPORT, REPORT]


async def test_a_report_too_large_for_a_call_goes_in_several(rig: Rig) -> None:
    control = Recorder()
    instance, backup = next(iter(REPORT.instances.values())), next(iter(REPORT.backups.values()))
    report = replace(
        REPORT,
        instances={f"ins_{number}": instance for number in range(40)},
        volumes={f"vol_{number}": ObservedVolume(size_bytes=1 << 40) for number in range(100)},
        backups={f"bak_{number}": backup for number in range(100)},
    )
    limit = len(encode(report)) // 3
    node = TlsNodeUplink(rig.channel(rig.identities.node(), rig.port(control).url), max_report=limit)
    assert await node.report(report) == 3
    parts = [part for part in control.got if isinstance(part, NodeReport)]
    assert len(parts) == 4
    assert all(len(encode(part)) <= limit for part in parts)
    assert _joined(part.instances for part in parts) == report.instances
    assert _joined(part.volumes for part in parts) == report.volumes
    assert _joined(part.backups for part in parts) == report.backups
    assert {part.sequence for part in parts} == {report.sequence}


def _joined(parts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """All of them; each is in one part only."""
    joined: dict[str, T] = {}
    for part in parts:
        assert not joined.keys() & part.keys()
        joined |= part
    return joined


class TestNonsense:
    """What a broken server, or a box in between with the platform's certificate, may answer."""

    @contextlib.asynccontextmanager
    async def answering(self, rig: Rig, answer: bytes) -> AsyncIterator[TlsNodeUplink]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
                await asyncio.sleep(0.01)
            writer.transport.abort()

        listener = listening()
        context = server_context(rig.identities.authority.server())
        async with await asyncio.start_server(serve, sock=listener, ssl=context):
            channel = rig.channel(rig.identities.node(), f"https://127.0.0.1:{port_of(listener)}")
            yield TlsNodeUplink(channel)
            await channel.close()

    def reply(self, status: int, body: bytes, version: object = uplink.PROTOCOL) -> bytes:
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{uplink.PROTOCOL_HEADER}: {version}\r\n\r\n"
        return head.encode() + body

    @pytest.mark.parametrize("status", [200, 302, 404, 500])
    @pytest.mark.parametrize("body", [b"", b"<html>", b"\xc1", b"\x93\x01"])
    async def test_no_answer_of_a_server(self, rig: Rig, status: int, body: bytes) -> None:
        async with self.answering(rig, self.reply(status, body)) as node:
            with pytest.raises(UnavailableError) as caught:
                await node.report(REPORT)
            assert caught.value.code == "uplink-nonsense"

    async def test_an_answer_without_an_end(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(uplink, "MAX_SERVER_ANSWER", 10_000)
        async with self.answering(rig, self.reply(200, bytes(100_000))) as node:
            with pytest.raises(UnavailableError, match="too long"):
                await node.report(REPORT)

    async def test_a_server_that_is_too_old_is_told_with_the_remedy(self, rig: Rig) -> None:
        answer = self.reply(200, encode(ReportAnswer(epoch=3)), version=uplink.PROTOCOL + 2)
        async with self.answering(rig, answer) as node:
            with pytest.raises(InvalidError) as caught:
                await node.report(REPORT)
            assert (caught.value.code, "nodes" in caught.value.resolution) == ("uplink-too-new", True)

    async def test_an_error_of_a_kind_that_is_not_known_yet(self, rig: Rig) -> None:
        for retriable, kind in ((True, UnavailableError), (False, InvalidError)):
            refusal = uplink.Refusal(kind="of-2028", code="new", message="said", retriable=retriable)
            async with self.answering(rig, self.reply(418, encode(refusal))) as node:
                with pytest.raises(kind) as caught:
                    await node.report(REPORT)
                assert (caught.value.code, caught.value.message) == ("new", "said")


@pytest.mark.parametrize(
    ("side", "apart", "remedy"),
    [
        (Side.AGENT, -2, "hosts of nodes and edges"),
        (Side.AGENT, +2, "servers"),
        (Side.SERVER, -2, "servers"),
        (Side.SERVER, +2, "hosts of nodes and edges"),
    ],
)
def test_who_has_to_be_updated_is_who_is_behind(
    side: Side, apart: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "PROTOCOL", 7)
    for one_apart in (-1, 0, 1):
        check_protocol(str(7 + one_apart), side)
    with pytest.raises(InvalidError) as caught:
        check_protocol(str(7 + apart), side)
    assert f"on the {remedy} first" in caught.value.resolution


@pytest.mark.parametrize("told", [None, "", "x", "-1", "1.0", "٣", "9" * 7])
def test_what_is_no_version_is_malformed(told: str | None) -> None:
    with pytest.raises(MalformedError):
        check_protocol(told, Side.AGENT)


class TestRota:
    """`jitter` is a constant here, so that the order of equals is the one given."""

    def test_who_answered_is_asked_again(self) -> None:
        rota = Rota(lambda: ["a", "b", "c"], lambda: 0.5)
        rota.answered("b", 0.0)
        assert rota.order(1.0)[0] == "b"

    def test_who_failed_is_asked_last_until_it_has_rested(self) -> None:
        rota = Rota(lambda: ["a", "b"], lambda: 0.5)
        rota.answered("a", 0.0)
        rota.failed("a", 1.0)
        assert rota.order(1.1) == ["b", "a"]
        assert rota.order(2.0) == ["a", "b"]

    def test_rests_grow_and_end(self) -> None:
        rota = Rota(lambda: ["a", "b"], lambda: 0.999)
        for _ in range(50):
            rota.failed("a", 0.0)
        assert rota.order(14.0) == ["b", "a"]
        assert rota.order(15.1) == ["a", "b"]

    def test_the_choice_is_made_anew_after_a_while(self) -> None:
        draws = iter([0.5, 0.1, 0.9, 0.1, 0.9])
        rota = Rota(lambda: ["a", "b"], lambda: next(draws))
        rota.answered("b", 0.0)
        assert rota.order(299.0) == ["b", "a"]
        assert rota.order(301.0) == ["a", "b"]

    def test_callers_of_a_server_that_died_spread_over_the_others(self) -> None:
        first = set()
        for draw in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]):
            draws = iter([0.5, 0.5, *draw])
            rota = Rota(lambda: ["a", "b", "c"], lambda draws=draws: next(draws))  # type: ignore[misc]
            rota.answered("a", 0.0)
            rota.failed("a", 1.0)
            first.add(rota.order(1.1)[0])
        assert first == {"b", "c"}

    def test_servers_come_and_go(self) -> None:
        urls = ["a", "b/"]
        rota = Rota(lambda: urls, lambda: 0.5)
        rota.answered("a", 0.0)
        urls[:] = ["b", "c"]
        assert rota.order(1.0) == ["b", "c"]
        rota.failed("b", 1.0)
        rota.answered("a", 1.0)
        rota.failed("a", 1.0)
        assert rota.order(1.1) == ["c", "b"]
