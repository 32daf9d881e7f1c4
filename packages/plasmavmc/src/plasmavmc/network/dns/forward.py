"""Questions that are not ours: asked of the host's own resolvers, in turn, with patience that ends.

Theory. Each question goes out from a socket of its own, so from a port that nobody can know, with a random id and with the
letters of its name in random case; the kernel lets in only what comes from whom we asked. An answer must repeat all of
that. Where one tells the right name in other letters, or was cut, the same is asked by TCP, which nobody can answer from
aside. Several who ask the same wait for one answer. How many questions may be under way is bounded, for each asker and for
each network too, and no network takes what others need (`shares`).
Source: RFC 5452, RFC 7766 (TCP), RFC 9520 (failures are kept for a moment).
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from plasmavmc.deadlines import within
from plasmavmc.network.dns import reply, wire
from plasmavmc.network.dns.cache import Cache, Key, key_of
from plasmavmc.network.dns.reply import Reply
from plasmavmc.network.dns.shares import Shares
from plasmavmc.network.dns.wire import MalformedError, Query

Upstream = tuple[str, int]
"""Address and port of a resolver."""
_FAILED = Reply(wire.SERVFAIL, (0, 0), b"", (), 2)
"""Nobody answered. Kept so long that those who ask again at once are no burden."""
_OTHERS_MAY_KNOW = frozenset({wire.SERVFAIL, wire.REFUSED, wire.NOTIMP, wire.FORMERR})
_RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds, and numbers of questions under way."""

    udp_s: float = 1.5
    tcp_s: float = 3.0
    whole_s: float = 8.0
    rounds: int = 2
    of_asker: int = 64
    of_network: int = 256
    of_all: int = 1024


class Forwarder:
    """See the module's head. `clock` is monotonic, in seconds."""

    def __init__(
        self, upstreams: Callable[[], Sequence[Upstream]], clock: Callable[[], float], patience: Patience | None = None
    ) -> None:
        self._upstreams = upstreams
        self._clock = clock
        self._patience = patience or Patience()
        self._cache = Cache()
        self._asked: dict[Key, asyncio.Task[Reply]] = {}
        self._places = Shares(self._patience.of_all, of_group=self._patience.of_network, of_one=self._patience.of_asker)
        self._good: Upstream | None = None
        """Who answered last is asked first."""

    def known(self, query: Query) -> tuple[Reply, int] | None:
        """An answer that is there, and its age."""
        return self._cache.get(key_of(query), self._clock())

    async def ask(self, query: Query, asker: str, network: str) -> Reply:
        """The answer to a question; that there is none where nobody answers in time, or who asks has too many under way."""
        if not self._places.has_for(asker, network):
            return _FAILED
        key = key_of(query)
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(self._answered(key, query), name="question")
        with self._places.taken(asker, network):
            return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def _answered(self, key: Key, query: Query) -> Reply:
        found = _FAILED
        try:
            with suppress(TimeoutError):
                async with within(self._patience.whole_s):
                    found = await self._from_anybody(query)
        finally:
            del self._asked[key]
        self._cache.put(key, found, self._clock())
        return found

    async def _from_anybody(self, query: Query) -> Reply:
        """The first answer that says something, else the last that says that it does not."""
        found = _FAILED
        for _ in range(self._patience.rounds):
            for upstream in sorted(self._upstreams(), key=lambda each: each != self._good):
                try:
                    got = await self._from(upstream, query)
                except (OSError, EOFError, TimeoutError, MalformedError):
                    continue
                if got.rcode not in _OTHERS_MAY_KNOW:
                    self._good = upstream
                    return got
                found = _FAILED
        return found

    async def _from(self, upstream: Upstream, query: Query) -> Reply:
        data = await self._exchanged(upstream, query, edns=True)
        if reply.rcode_of(data) in (wire.FORMERR, wire.NOTIMP):
            data = await self._exchanged(upstream, query, edns=False)
        return reply.read(data, query)

    async def _exchanged(self, upstream: Upstream, query: Query, *, edns: bool) -> bytes:
        id_, question = secrets.randbits(16), mixed_case(query.question)
        flags = wire.RD | query.flags & wire.CD
        message = wire.encode_query(id_, question, flags, edns=edns, dnssec=query.dnssec and edns)
        data = await self._by_udp(upstream, message)
        if wire.is_cut(data) or not reply.answers(data, id_, question):
            data = await self._by_tcp(upstream, message)
            if not reply.answers(data, id_, question):
                raise MalformedError("an answer to something else")
        return data

    async def _by_udp(self, upstream: Upstream, message: bytes) -> bytes:
        """The first datagram of whom we asked that has our id and our name, whatever its letters."""
        loop = asyncio.get_running_loop()
        transport, waiting = await loop.create_datagram_endpoint(lambda: _Waiting(message), remote_addr=upstream)
        try:
            transport.sendto(message)
            async with within(self._patience.udp_s):
                return await waiting.answer
        finally:
            transport.close()

    async def _by_tcp(self, upstream: Upstream, message: bytes) -> bytes:
        async with within(self._patience.tcp_s):
            reader, writer = await asyncio.open_connection(*upstream)
            try:
                writer.write(len(message).to_bytes(2, "big") + message)
                await writer.drain()
                return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            finally:
                writer.close()


class _Waiting(asyncio.DatagramProtocol):
    """Waits for the answer to one message."""

    def __init__(self, message: bytes) -> None:
        self._id = int.from_bytes(message[:2], "big")
        self._question = wire.parse_query(message).question.lower()
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        with suppress(MalformedError):
            end = wire.HEADER + len(self._question)
            told = data[: wire.HEADER] + data[wire.HEADER : end].lower()
            if not self.answer.done() and reply.answers(told, self._id, self._question):
                self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


def mixed_case(question: bytes) -> bytes:
    """The same question, each letter of its name in either case by chance (draft-vixie-dnsext-dns0x20)."""
    name = bytearray(question[:-4])
    chance = _RANDOM.getrandbits(len(name))
    at = 0
    while name[at]:
        length = name[at]
        for place in range(at + 1, at + 1 + length):
            if chance >> place & 1 and chr(name[place]).isalpha():
                name[place] ^= 0x20
        at += 1 + length
    return bytes(name) + question[-4:]
