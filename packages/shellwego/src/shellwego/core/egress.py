"""Where the platform may send what a tenant asked it to send: never into a private network, unless the operator allows it.

Theory. A name is judged by its addresses, and all of them are judged, since any may be taken. Some IPv6 addresses only carry
an IPv4 address; what they carry is judged. Of IPv4 all is public but what IANA's special-purpose registry reserves; of IPv6
nothing is but the global unicast block, less what is reserved there. Sources: RFC 6890 and its registries, RFC 6052 (NAT64),
RFC 3056 (6to4), RFC 4380 (Teredo).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from shellwego.core.errors import FieldError, InvalidError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL = 2048
HTTPS_PORT = 443
_FIRST_PORT = 1024
_URL = re.compile(r"https?://[!-~]+", re.ASCII | re.IGNORECASE)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.ASCII)
_UNSAFE = set('"<>\\^`{|}')

_DENIED_V4 = tuple(
    (IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared between carriers"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's metadata"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "reserved"),
        ("192.52.193.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
_DENIED_V6 = tuple(
    (IPv6Network(network), why)
    for network, why in (
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("2620:4f:8000::/48", "reserved"),
        ("3fff::/20", "documentation"),
    )
)
_CARRIERS = ((IPv6Network("::ffff:0:0/96"), 0), (IPv6Network("64:ff9b::/96"), 0), (IPv6Network("2002::/16"), 80))
"""Networks whose addresses carry an IPv4 address, and how many bits stand after it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts; `path` carries the query as well."""

    scheme: str
    host: str
    """A lower-case name, or an address in its canonical form, without brackets."""
    port: int
    path: str

    @property
    def literal(self) -> Address | None:
        """The address, where the host is one."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks as an operator writes them, such as `10.0.0.0/8` or `127.0.0.1`.

    Raises:
        InvalidError: one is none.
    """
    try:
        return tuple(ip_network(text.strip()) for text in texts if text.strip())
    except ValueError as error:
        raise InvalidError("invalid-network", f"not a network: {error}") from error


def embedded_v4(address: Address) -> Address:
    """The IPv4 address that an IPv6 address only carries; else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    for network, after in _CARRIERS:
        if address in network:
            return IPv4Address((int(address) >> after) & 0xFFFFFFFF)
    return address


def is_listed(address: Address, networks: Sequence[Network]) -> bool:
    """Whether the operator allows the address, or what it carries, by one of his networks."""
    meant = embedded_v4(address)
    return any(meant.version == network.version and meant in network for network in networks)


def address_refusal(address: Address, networks: Sequence[Network]) -> str:
    """Why nothing may be sent to this address; empty: it may."""
    if is_listed(address, networks):
        return ""
    meant = embedded_v4(address)
    if isinstance(meant, IPv4Address):
        return next((why for network, why in _DENIED_V4 if meant in network), "")
    if meant not in _GLOBAL_V6:
        return "not public"
    return next((why for network, why in _DENIED_V6 if meant in network), "")


def check_addresses(target: Target, addresses: Sequence[Address], networks: Sequence[Network]) -> None:
    """Refuse a target for what its name means now.

    Raises:
        InvalidError: it has no address, one of them is not allowed, or its traffic would be in clear on a public network.
    """
    if not addresses:
        raise _refused("unknown-host", f"{target.host} has no address")
    for address in addresses:
        if why := address_refusal(address, networks):
            raise _refused("address-refused", f"{target.host} leads to an address that is not allowed ({why})")
    if not all(is_listed(address, networks) for address in addresses):
        _check_public(target)


def parse_target(url: str, networks: Sequence[Network]) -> Target:
    """A URL that may be sent to, as far as can be told without looking its name up.

    Raises:
        InvalidError: it is no such URL, or may not be.
    """
    if len(url) > MAX_URL or not _URL.fullmatch(url) or _UNSAFE & set(url):
        raise _refused("bad-url", f"not an absolute https URL of at most {MAX_URL} plain characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("bad-url", "its host or port makes no sense") from None
    if "@" in parts.netloc or "#" in url:
        raise _refused("bad-url", "a URL here has neither user, password nor fragment")
    host = _host(parts.hostname or "")
    if port is None and parts.netloc.endswith(":"):
        raise _refused("bad-url", "the port is missing after the colon")
    chosen = (HTTPS_PORT if parts.scheme == "https" else 80) if port is None else port
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    target = Target(parts.scheme, host, chosen, path)
    _check_form(target, networks)
    return target


def _check_form(target: Target, networks: Sequence[Network]) -> None:
    literal = target.literal
    if literal is not None:
        check_addresses(target, (literal,), networks)
    if not networks:
        _check_public(target)
    if target.port == 0:
        raise _refused("port-refused", "there is no port 0")


def _check_public(target: Target) -> None:
    """Rules of a target outside of the operator's networks."""
    if target.scheme != "https":
        raise _refused("https-needed", "only https is allowed; plain http is for networks that the operator allows")
    if target.port != HTTPS_PORT and target.port < _FIRST_PORT:
        raise _refused("port-refused", f"the port is {HTTPS_PORT}, or one from {_FIRST_PORT} on")


def _host(text: str) -> str:
    """A name or address in its one form. What resolvers would read as a number in another form is neither."""
    if ":" in text:
        if "%" in text:
            raise _refused("bad-url", "an address here has no zone")
        return str(ip_address(text))
    if _NUMBER.fullmatch(text.rstrip(".").rpartition(".")[2]):
        try:
            return str(IPv4Address(text))
        except ValueError:
            raise _refused("bad-url", "an IPv4 address is four decimal numbers") from None
    if not _HOST.fullmatch(text) or len(text) > 253:
        raise _refused("bad-url", "its host is no name; write one of another alphabet in its xn-- form")
    return text.rstrip(".")


def _refused(code: str, message: str) -> InvalidError:
    return InvalidError(code, message, errors=(FieldError("url", code, message),))
