"""The uplink over TLS: calls to whichever server answers.

Each call may be made twice without harm, and that is used: a server that does not answer within a moment gets a rival. The
same call goes to the next server, and the first answer counts. So a server that is paused costs a second, and nobody has to
guess how long one that is only busy may take. Where all are busy, rivals would make it worse; so there are few of them.
"""

from __future__ import annotations

import asyncio
import io
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import aiohttp

from shellwego.core.assignments import (
    Assignments,
    NodeReport,
    Registration,
    SecretsRequest,
    SecretValues,
    VolumeKey,
    VolumeKeyRequest,
)
from shellwego.core.backups import BackupAccess, BackupAccessRequest
from shellwego.core.errors import ShellWeGoError, UnavailableError
from shellwego.core.names import NodeNames
from shellwego.core.publishing import NodePorts
from shellwego.core.routing import EdgeReport, RouteTable
from shellwego.drivers.uplink.rota import Rivals, Rota
from shellwego.wire import uplink
from shellwego.wire.codec import decode, encode
from shellwego.wire.tls import SERVER_NAME, Credentials, client_context, expires_at
from shellwego.wire.uplink import (
    AssignmentsCall,
    Done,
    Method,
    NamesCall,
    PortsCall,
    RegisterEdgeAnswer,
    RegisterEdgeCall,
    ReportAnswer,
    RoutesAnswer,
    RoutesCall,
    Side,
)

A = TypeVar("A")
T = TypeVar("T")

RIVAL_S = 1.0
CALL_S = 15.0
IDLE_S = 30.0
"""An unused connection is kept so long, which is less than servers keep it."""


class UplinkChannel:
    """Calls to servers, with one identity. The credentials are asked for at each call, so that renewed ones are used."""

    def __init__(
        self,
        servers: Callable[[], Sequence[str]],
        credentials: Callable[[], Credentials],
        *,
        rival_s: float = RIVAL_S,
        call_s: float = CALL_S,
        jitter: Callable[[], float] = random.random,
        answered: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`servers` are URLs, asked for at each call; `answered` is told which of them did."""
        self._rota = Rota(servers, jitter)
        self._answered = answered
        self._credentials = credentials
        self._shown: Credentials | None = None
        self._context: ssl.SSLContext | None = None
        self._rivals = Rivals()
        self._rival_s = rival_s
        self._call_s = call_s
        self._session: aiohttp.ClientSession | None = None

    async def call(self, method: str, asked: object, answer: type[A]) -> A:
        """Ask the servers until one answers.

        Raises:
            UnavailableError: none did. The call may have been done all the same.
            ShellWeGoError: what the server refused it with.
        """
        body = encode(asked)
        decode(type(asked), body)  # what is wrong stays here
        tries: set[asyncio.Task[A]] = set()
        trouble: ShellWeGoError = UnavailableError("uplink-unavailable", "this node knows no server")
        urls, moved_on = self._rota.order(_now()), False
        try:
            async with asyncio.timeout(self._call_s):
                while urls or tries:
                    if urls and (not tries or moved_on or self._rivals.take(_now())):
                        tries.add(asyncio.create_task(self._try(urls.pop(0), method, body, answer)))
                    done, tries = await asyncio.wait(
                        tries, timeout=self._rival_s if urls else None, return_when=asyncio.FIRST_COMPLETED
                    )
                    moved_on = bool(done)
                    for task in done:
                        error = task.exception()
                        if not isinstance(error, UnavailableError):
                            return task.result()
                        trouble = error
        except TimeoutError:
            trouble = UnavailableError("uplink-unavailable", f"no server answered within {self._call_s:g} s")
        finally:
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
        raise trouble

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _try(self, url: str, method: str, body: bytes, answer: type[A]) -> A:
        try:
            result = await self._ask(url, method, body, answer)
        except UnavailableError:
            self._rota.failed(url, _now())
            raise
        except ShellWeGoError:
            self._note_answer(url)
            raise
        except asyncio.CancelledError:  # a rival was faster
            self._rota.failed(url, _now())
            raise
        self._note_answer(url)
        return result

    def _note_answer(self, url: str) -> None:
        self._rota.answered(url, _now())
        self._answered(url)

    async def _ask(self, url: str, method: str, body: bytes, answer: type[A]) -> A:
        try:
            async with self._open_session().post(
                f"{url}{uplink.BASE}{method}",
                data=io.BytesIO(body),
                headers={"Content-Type": uplink.MEDIA_TYPE, uplink.PROTOCOL_HEADER: str(uplink.PROTOCOL)},
                ssl=self._current_context(),
                server_hostname=SERVER_NAME,
                allow_redirects=False,
            ) as response:
                content = await read_whole(response)
                version = response.headers.get(uplink.PROTOCOL_HEADER)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise no_answer(url, error, self._credentials()) from None
        if response.status != 200:
            raise refused(url, response.status, content)
        uplink.check_protocol(version, Side.SERVER)
        try:
            return decode(answer, content)
        except ValueError as error:
            raise _nonsense(url, 200, error) from None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=16, keepalive_timeout=IDLE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=self._call_s, sock_connect=5.0),
            )
        return self._session

    def _current_context(self) -> ssl.SSLContext:
        credentials = self._credentials()
        if self._context is None or credentials is not self._shown:
            self._context = client_context(credentials.authorities, credentials)
            self._shown = credentials
        return self._context


class TlsNodeUplink:
    """See `ports.uplink.NodeUplink`."""

    def __init__(self, channel: UplinkChannel, max_report: int = uplink.MAX_BODIES[Method.REPORT]) -> None:
        self._channel = channel
        self._max_report = max_report

    async def register(self, registration: Registration) -> Assignments:
        return await self._channel.call(Method.REGISTER, registration, Assignments)

    async def assignments(self, node_id: str) -> Assignments:
        return await self._channel.call(Method.ASSIGNMENTS, AssignmentsCall(node_id=node_id), Assignments)

    async def report(self, report: NodeReport) -> int:
        """One that is too large for a call goes in several, of the same sequence: each thing is in one of them."""
        epoch = 0
        for part in _parts(report, self._max_report):
            epoch = (await self._channel.call(Method.REPORT, part, ReportAnswer)).epoch
        return epoch

    async def names(self, node_id: str) -> NodeNames:
        return await self._channel.call(Method.NAMES, NamesCall(node_id=node_id), NodeNames)

    async def ports(self, node_id: str) -> NodePorts:
        return await self._channel.call(Method.PORTS, PortsCall(node_id=node_id), NodePorts)

    async def secrets(self, request: SecretsRequest) -> SecretValues:
        return await self._channel.call(Method.SECRETS, request, SecretValues)

    async def backup_access(self, request: BackupAccessRequest) -> BackupAccess:
        return await self._channel.call(Method.BACKUP_ACCESS, request, BackupAccess)

    async def volume_key(self, request: VolumeKeyRequest) -> VolumeKey:
        return await self._channel.call(Method.VOLUME_KEY, request, VolumeKey)


class TlsEdgeUplink:
    """See `ports.uplink.EdgeUplink`."""

    def __init__(self, channel: UplinkChannel) -> None:
        self._channel = channel

    async def register_edge(self, name: str) -> str:
        answer = await self._channel.call(Method.REGISTER_EDGE, RegisterEdgeCall(name=name), RegisterEdgeAnswer)
        return answer.edge_id

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        asked = RoutesCall(edge_id=edge_id, known_version=known_version)
        return (await self._channel.call(Method.ROUTES, asked, RoutesAnswer)).table

    async def report_edge(self, report: EdgeReport) -> None:
        await self._channel.call(Method.REPORT_EDGE, report, Done)


def _parts(report: NodeReport, limit: int) -> list[NodeReport]:
    """The report in pieces that fit, where it names more than one thing."""
    named = sum(map(len, (report.instances, report.volumes, report.backups, report.replicas)))
    if named <= 1 or len(encode(report)) <= limit:
        return [report]
    halves = (_part(report, 0, named // 2), _part(report, named // 2, named))
    return [piece for half in halves for piece in _parts(half, limit)]


def _part(report: NodeReport, first: int, end: int) -> NodeReport:
    """What it names from the first to before the end: instances, then volumes, then backups, then replicas."""
    volumes = len(report.instances)
    backups = volumes + len(report.volumes)
    replicas = backups + len(report.backups)
    return replace(
        report,
        instances=_some(report.instances, first, end),
        volumes=_some(report.volumes, first - volumes, end - volumes),
        backups=_some(report.backups, first - backups, end - backups),
        replicas=_some(report.replicas, first - replicas, end - replicas),
        traffic=None if first else report.traffic,
    )


def _some(named: Mapping[str, T], first: int, end: int) -> dict[str, T]:
    return dict(islice(named.items(), max(first, 0), max(end, 0)))


async def read_whole(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer, within a bound; raises `aiohttp.ClientError`."""
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > uplink.MAX_SERVER_ANSWER:
            raise aiohttp.ClientPayloadError("the answer is too long")
    return bytes(data)


def refused(url: str, status: int, content: bytes) -> ShellWeGoError:
    """What a server that does not say yes says."""
    try:
        return uplink.error_of(decode(uplink.Refusal, content))
    except ValueError as error:
        return _nonsense(url, status, error)


def _nonsense(url: str, status: int, error: Exception) -> ShellWeGoError:
    return UnavailableError(
        "uplink-nonsense", f"the server at {url} answers what is no answer (HTTP {status}): {error}"
    )


def no_answer(url: str, error: Exception, credentials: Credentials) -> ShellWeGoError:
    """What it means for the caller that there was none."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return UnavailableError(
            "uplink-untrusted",
            f"who answers at {url} is no server of this platform ({error.certificate_error})",
            resolution="See that the address is right, and the clocks; then join this host again.",
        )
    cut = isinstance(error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError)
    if cut and not isinstance(error, aiohttp.ClientConnectorError):
        return _hung_up(url, credentials)
    return UnavailableError("uplink-unavailable", f"no answer from {url} ({type(error).__name__}: {error})")


def _hung_up(url: str, credentials: Credentials) -> ShellWeGoError:
    """A server that refuses a certificate closes the connection without a word: asyncio sends no alert."""
    if expires_at(credentials) <= time.time():
        return UnavailableError(
            "uplink-certificate-expired",
            f"{url} hung up: the certificate of this host has expired",
            resolution="See the clock; else join this host again, with a new token (swg nodes join-token).",
        )
    return UnavailableError(
        "uplink-hung-up",
        f"{url} hung up",
        resolution="If that lasts, it does not accept this host's certificate: see the clocks, else join again.",
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
