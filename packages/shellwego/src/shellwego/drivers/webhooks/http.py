"""Driver `http`: POSTs over the network with aiohttp, on a connection of its own for each delivery.

The name is looked up here, once, and aiohttp gets the judged addresses in place of a resolver: a name that means something
else a moment later (DNS rebinding) changes nothing. The URL that aiohttp sees is put together from the parts that were
judged, so that two parsers cannot disagree about its host. No proxy, no cookies, no redirects, no decompression; of the
answer its status is read and the connection is closed.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from plasmavmc.host.lookups import lookup
from shellwego.core.egress import Address, Network, Target, check_addresses, parse_target
from shellwego.core.errors import InvalidError
from shellwego.ports.webhooks import Outcome, Shipment

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

TIMEOUT_S = 10.0

Lookup = Callable[[str, int], Awaitable[Sequence[Address]]]
"""All addresses of a name; raises `OSError` where there are none."""


async def system_lookup(host: str, port: int) -> Sequence[Address]:
    """As the host resolves names."""
    return [ip_address(address.partition("%")[0]) for address in await lookup(host, port)]


class HttpSender:
    """`networks`: those that the operator allows beside the public ones; `tls`: whom to trust, the host's authorities by
    default."""

    def __init__(
        self,
        networks: Sequence[Network] = (),
        *,
        lookup: Lookup = system_lookup,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._networks = tuple(networks)
        self._lookup = lookup
        self._tls = tls
        self._timeout_s = timeout_s

    async def send(self, shipment: Shipment) -> Outcome:
        import aiohttp  # noqa: F401, PLC0415 - the first time takes a while, which is not the receiver's

        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(shipment)
        except InvalidError as error:
            return Outcome(None, error.message, clock() - began)
        except TimeoutError:
            return Outcome(None, f"no answer within {self._timeout_s:g} s", clock() - began)
        except _Unreachable as error:
            return Outcome(None, str(error), clock() - began)
        return Outcome(status, "" if 200 <= status < 300 else f"it answered {status}", clock() - began)

    async def _post(self, shipment: Shipment) -> int:
        target = parse_target(shipment.url, self._networks)
        addresses = await self._addresses(target)
        check_addresses(target, addresses, self._networks)
        return await self._exchange(target, addresses, shipment)

    async def _addresses(self, target: Target) -> Sequence[Address]:
        literal = target.literal
        if literal is not None:
            return (literal,)
        try:
            return await self._lookup(target.host, target.port)
        except (OSError, UnicodeError):
            raise _Unreachable(f"{target.host} could not be looked up") from None

    async def _exchange(self, target: Target, addresses: Sequence[Address], shipment: Shipment) -> int:
        import aiohttp  # noqa: PLC0415 - costs memory where there are no webhooks
        from yarl import URL  # noqa: PLC0415

        host = f"[{target.host}]" if isinstance(target.literal, IPv6Address) else target.host
        url = URL(f"{target.scheme}://{host}:{target.port}{target.path}", encoded=True)
        connector = aiohttp.TCPConnector(
            resolver=_pinned(addresses), use_dns_cache=False, force_close=True, ssl=self._tls or True
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        )
        try:
            async with session:
                response = await session.post(
                    url, data=shipment.body, headers=dict(shipment.headers), allow_redirects=False
                )
                response.close()
                return response.status
        except aiohttp.ClientConnectorCertificateError:
            raise _Unreachable("its certificate is not one that is trusted for this host") from None
        except aiohttp.ClientConnectorError as error:
            raise _Unreachable(f"no connection: {error.os_error.strerror or 'refused'}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Unreachable(f"no answer that makes sense ({type(error).__name__})") from None


class _Unreachable(Exception):
    """Why there was no answer."""


def _pinned(addresses: Sequence[Address]) -> AbstractResolver:
    """A resolver that knows these addresses and looks nothing up."""
    from aiohttp.abc import AbstractResolver, ResolveResult  # noqa: PLC0415

    class Pinned(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host,
                    host=str(address),
                    port=port,
                    family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
                for address in addresses
            ]

        async def close(self) -> None:
            """Nothing is open."""

    return Pinned()
