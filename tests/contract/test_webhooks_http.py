"""The webhooks contract on real sockets, and what only a network can do: changing names, certificates, endless answers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shellwego.core.egress import Address, parse_networks
from shellwego.drivers.webhooks.http import HttpSender, system_lookup
from shellwego.ports.webhooks import Shipment
from tests.contract.webhooks_contract import ALLOWED, FORBIDDEN, Receiver, WebhooksContract, shipment

SHORT_S = 2.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Network:
    """Listeners on loopback, and names that a test gives meaning to."""

    def __init__(self) -> None:
        self.names: dict[str, list[Sequence[str]]] = {}
        self.asked: list[str] = []
        self._servers: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[object]] = set()

    async def lookup(self, host: str, port: int) -> Sequence[Address]:
        """The meanings of a name, one after another; the last one stays."""
        self.asked.append(host)
        meanings = self.names.get(host)
        if not meanings:
            raise OSError("no such name")
        meaning = meanings.pop(0) if len(meanings) > 1 else meanings[0]
        return [ip_address(text) for text in meaning]

    def name(self, host: str, *addresses: str) -> None:
        self.names[host] = [addresses]

    async def listen(self, handler: Handler, address: str = ALLOWED, tls: ssl.SSLContext | None = None) -> int:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._serving.add(task)
            try:
                with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await handler(reader, writer)
            finally:
                writer.transport.abort() if task.cancelling() else writer.close()
                with suppress(OSError, ssl.SSLError):
                    await writer.wait_closed()

        server = await asyncio.start_server(served, address, 0, ssl=tls)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def receiver(
        self,
        answer: int | None,
        *,
        address: str = ALLOWED,
        location: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> Receiver:
        receiver = Receiver(0)

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            receiver.posts.append(await read_post(reader))
            if answer is None:
                await asyncio.sleep(3600)
            told = f"Location: {location}\r\n" if location else ""
            writer.write(f"HTTP/1.1 {answer} Told\r\n{told}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()

        receiver.port = await self.listen(handle, address, tls)
        return receiver

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


async def read_post(reader: asyncio.StreamReader) -> Shipment:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *fields = head.rstrip("\r\n").split("\r\n")
    headers = {name: value.strip() for name, _, value in (text.partition(":") for text in fields)}
    return Shipment(line.split()[1], headers, await reader.readexactly(int(headers["Content-Length"])))


@pytest.fixture
async def receivers() -> AsyncIterator[Network]:
    network = Network()
    yield network
    await network.close()


@pytest.fixture
def sender(receivers: Network) -> HttpSender:
    return HttpSender(parse_networks([ALLOWED]), lookup=receivers.lookup, timeout_s=SHORT_S)


class TestHttpSender(WebhooksContract):
    """The driver on loopback."""


async def test_a_name_that_means_something_else_a_moment_later_changes_nothing(
    sender: HttpSender, receivers: Network
) -> None:
    good = await receivers.receiver(200)
    receivers.names["rebind.example"] = [(ALLOWED,), (FORBIDDEN,)]
    assert (await sender.send(shipment(f"http://rebind.example:{good.port}/"))).taken
    assert (receivers.asked, len(good.posts)) == (["rebind.example"], 1)
    outcome = await sender.send(shipment(f"http://rebind.example:{good.port}/"))
    assert (outcome.status, len(good.posts)) == (None, 1)
    assert "not allowed" in outcome.reason


async def test_the_receiver_is_told_the_name_that_the_url_has(sender: HttpSender, receivers: Network) -> None:
    receiver = await receivers.receiver(200)
    receivers.name("hook.example", ALLOWED)
    await sender.send(shipment(f"http://HOOK.example:{receiver.port}/"))
    assert receiver.posts[0].headers["Host"] == f"hook.example:{receiver.port}"
    assert "Cookie" not in receiver.posts[0].headers


async def test_a_proxy_of_the_environment_is_not_used(
    sender: HttpSender, receivers: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, proxy = await receivers.receiver(200), await receivers.receiver(502)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{ALLOWED}:{proxy.port}")
    assert (await sender.send(shipment(f"http://{ALLOWED}:{receiver.port}/"))).taken
    assert proxy.posts == []


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 100000000000\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\n", None),
        (b"SSH-2.0-OpenSSH_9.2\r\n", None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, None),
        (b"", None),
    ],
    ids=["endless body", "huge body", "endless headers", "another protocol", "huge header", "nothing"],
)
async def test_an_answer_without_end_costs_no_more_than_its_time(
    sender: HttpSender, receivers: Network, head: bytes, status: int | None
) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_post(reader)
        writer.write(head)
        while True:
            writer.write(b"X: y\r\n" * 100 if status is None else b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    port = await receivers.listen(flood)
    outcome = await sender.send(shipment(f"http://{ALLOWED}:{port}/"))
    assert outcome.status == status


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate of this name that signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[1].write_bytes(key.private_bytes(*form))
    return paths


async def test_https_is_verified_for_the_name_that_the_url_has(tmp_path: Path, receivers: Network) -> None:
    chain, key = certificate(tmp_path, "hook.example")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, key)
    receiver = await receivers.receiver(200, tls=server)
    receivers.name("hook.example", ALLOWED)
    receivers.name("other.example", ALLOWED)
    networks = parse_networks([ALLOWED])
    trusting = HttpSender(
        networks, lookup=receivers.lookup, tls=ssl.create_default_context(cafile=str(chain)), timeout_s=5.0
    )
    assert (await trusting.send(shipment(f"https://hook.example:{receiver.port}/"))).taken
    wary = HttpSender(networks, lookup=receivers.lookup, timeout_s=5.0)
    for sender, host in ((trusting, "other.example"), (wary, "hook.example")):
        outcome = await sender.send(shipment(f"https://{host}:{receiver.port}/"))
        assert outcome.status is None
        assert "certificate" in outcome.reason
    assert len(receiver.posts) == 1


async def test_the_hosts_own_resolver_gives_all_addresses() -> None:
    assert ip_address("127.0.0.1") in await system_lookup("localhost", 80)
    with pytest.raises(socket.gaierror):
        await system_lookup("no-such-host.invalid", 80)
