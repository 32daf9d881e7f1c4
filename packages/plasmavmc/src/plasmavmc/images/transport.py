"""HTTP GET for the registry client: every connection passes the policy, every wait has an end.

The address that a connection goes to is the one that was checked: names are resolved by our own resolver, which hands
on only what the policy admits, and addresses in URLs are checked before the request. Redirects are followed by hand,
each through the same checks; `Authorization` is sent to the origin that asked for it and never further.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from plasmavmc.deadlines import within
from plasmavmc.errors import ImageError, UnavailableError
from plasmavmc.images.policy import RegistryPolicy, check_parts, parse_address, place

Lookup = Callable[[str, int], Awaitable[tuple[str, ...]]]
"""Addresses of a host name; raises `OSError`."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOPS = 5
_HEADERS_S = 30.0
"""From the request to the end of the headers, redirects included."""
_PER_HOST = 8
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=20.0)


class Transport:
    """GET requests for one registry host. An async context manager, for it holds connections."""

    def __init__(self, policy: RegistryPolicy, host: str, lookup: Lookup) -> None:
        self._policy = policy
        self._base = policy.base_url(host)
        self._lookup = lookup
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Transport:
        self._own = await self._session(self._policy)
        self._elsewhere = await self._session(self._policy.without_list())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def base(self) -> URL:
        """The root of the registry's API."""
        return self._base

    @asynccontextmanager
    async def get(self, url: URL, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response at the end of all redirects, its body not read yet.

        Raises:
            ImageError: `registry-forbidden`, `registry-protocol`.
            UnavailableError: `registry-unreachable`, also for what breaks while the block reads the body.
        """
        try:
            async with AsyncExitStack() as stack:
                async with within(_HEADERS_S):
                    response = await self._follow(stack, url, dict(headers))
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unreachable(url, _words(error)) from error

    async def _follow(self, stack: AsyncExitStack, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        for _ in range(_HOPS):
            session = self._session_for(url)
            response = await stack.enter_async_context(session.get(url, headers=headers, allow_redirects=False))
            if response.status not in _REDIRECTS:
                return response
            target = _target(url, response)
            if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
                headers.pop("Authorization", None)
            response.close()
            url = target
        raise ImageError("registry-protocol", f"the registry at {place(self._base)} redirects without end")

    def _session_for(self, url: URL) -> aiohttp.ClientSession:
        """The connections that may be used for `url`, by whether it is the registry's own host."""
        if url.raw_host == self._base.raw_host:
            self._policy.check_url(url)
            return self._own
        self._policy.without_list().check_url(url)
        return self._elsewhere

    async def _session(self, policy: RegistryPolicy) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(policy, self._lookup), use_dns_cache=False, limit_per_host=_PER_HOST
        )
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=_TIMEOUT,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "plasmavmc", "Accept-Encoding": "identity"},
        )
        return await self._stack.enter_async_context(session)


class _Resolver(AbstractResolver):
    """Hands on the addresses that the policy admits for a host."""

    def __init__(self, policy: RegistryPolicy, lookup: Lookup) -> None:
        self._policy = policy
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        results: list[ResolveResult] = []
        refusal: ImageError | None = None
        for text in await self._lookup(host, port):
            address = parse_address(text)
            if address is None:
                continue
            try:
                self._policy.check_address(host, port, address)
            except ImageError as error:
                refusal = error
                continue
            version = socket.AF_INET if address.version == 4 else socket.AF_INET6
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            results.append(ResolveResult(hostname=host, host=text, port=port, family=version, proto=0, flags=flags))
        if not results:
            raise refusal or OSError(f"{host} has no address")
        return results

    async def close(self) -> None:
        """Nothing is held."""


def _target(url: URL, response: aiohttp.ClientResponse) -> URL:
    try:
        target = url.join(URL(response.headers["Location"], encoded=True)).with_fragment(None)
        check_parts(target)
        return target
    except (KeyError, ValueError, IndexError) as error:  # yarl has the last one for brackets in odd places
        raise ImageError("registry-protocol", f"{place(url)} redirects to no valid place") from error


def _words(error: Exception) -> str:
    """What went wrong, for people: of a connection that failed, the kernel's or the resolver's word alone."""
    if not isinstance(error, aiohttp.ClientConnectorError) or isinstance(error, aiohttp.ClientSSLError):
        return str(error) or type(error).__name__
    cause = error.os_error
    if not cause.errno:
        return str(cause)
    return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)


def unreachable(url: URL, details: str) -> UnavailableError:
    return UnavailableError(
        "registry-unreachable",
        f"the registry at {place(url)} does not answer",
        details=details[:200],
        resolution="Check its name and port, and that this host reaches it.",
    )
