"""Where a registry may be: the guard against requests forged through image references (SSRF). Pure.

Whoever may name an image makes this host open connections. So, unless the operator's list says otherwise, an address
must be public; that is asked of the address to which the connection goes, after name resolution, so a name that
resolves to something else the next time gains nothing. Where a registry sends us on (redirect, token realm), the list
does not help: such a place must be public, or the registry's own host.

A pattern is `HOST[:PORT]`: a host name, `*.` and a domain, or an address (IPv6 in brackets); a number or `*` as port
(443 where none is given). It matches the host as it was written, so a name cannot borrow an address's permission;
only `localhost` counts as 127.0.0.1.

A host that ends in a number is an address or nothing (WHATWG URL, 3.5): `2130706433` and `127.1` mean 127.0.0.1 to the
system, and HTTP clients that know them for addresses do not ask the resolver by which others are judged.

Plain HTTP is spoken with loopback hosts only, where a listener on the wire would have to be on this host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from yarl import URL

from plasmavmc.errors import ImageError, InvalidSpecError

Address = IPv4Address | IPv6Address

_PATTERN = re.compile(r"((?:\*\.)?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::([0-9]{1,5}|\*))?")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?")
_NAT64 = IPv6Address("64:ff9b::")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that is assigned to the Internet (IANA). What lies beside it, such as the old site-local fec0::/10, may be
routed within a site, and Python calls some of it global."""


@dataclass(frozen=True, slots=True)
class RegistryPolicy:
    """`allow` names registries that may have loopback or private addresses.

    Raises:
        InvalidSpecError: `allow`, for a malformed pattern.
    """

    allow: tuple[str, ...] = ()
    plain_http: bool = True
    setting: str = "allow"
    """How operators know the list, for remedies."""

    def __post_init__(self) -> None:
        for pattern in self.allow:
            if not _PATTERN.fullmatch(pattern.lower()):
                raise InvalidSpecError("allow", f"{pattern!r} is not HOST[:PORT] with * for any port")

    def base_url(self, host: str) -> URL:
        """The root of a registry's API; `host` with its port, as in a reference.

        Raises:
            ImageError: `image-reference`.
        """
        try:
            url = URL(f"https://{host}")
            check_parts(url)
        except ValueError as error:
            raise ImageError("image-reference", f"{host[:100]!r} is not the name of a host") from error
        return url.with_scheme("http") if self.plain_http and is_loopback(url) else url

    def check_url(self, url: URL) -> URL:
        """Return `url` if it may be asked, as far as that is known before its name is resolved.

        Raises:
            ImageError: `registry-forbidden`.
        """
        try:
            check_parts(url)
        except ValueError as error:
            raise forbidden(url, "its host is not the name of one") from error
        if url.scheme != "https" and not (url.scheme == "http" and self.plain_http and is_loopback(url)):
            raise forbidden(url, "only https is spoken beyond this host")
        if not url.host or url.port is None or url.user is not None:
            raise forbidden(url, "the URL has no host, or carries a user")
        literal = parse_address(url.host)
        if literal is not None:
            self.check_address(url.host, url.port, literal)
        elif _NUMBER.fullmatch(url.host):
            raise forbidden(url, "its host is a number, and no address as it is usually written")
        return url

    def check_address(self, host: str, port: int, address: Address) -> None:
        """Refuse a connection to `address` for `host`, unless it is public, or the list names the host.

        Raises:
            ImageError: `registry-forbidden`.
        """
        if not (is_public(address) or self._names(host, port)):
            raise ImageError(
                "registry-forbidden",
                f"the registry {host}:{port} is at {address}, which is not a public address",
                resolution=f'An operator can allow it: "{host}:{port}" in {self.setting}.',
            )

    def without_list(self) -> RegistryPolicy:
        """The policy for where a registry sends us on."""
        return replace(self, allow=())

    def _names(self, host: str, port: int) -> bool:
        hosts = {host.lower(), "127.0.0.1"} if host == "localhost" else {host.lower()}
        return any(_matches(pattern.lower(), written, port) for pattern in self.allow for written in hosts)


def check_parts(url: URL) -> None:
    """Look at each part of a URL, for some are parsed only then.

    Raises:
        ValueError: one is malformed, or the host is none that a resolver takes: a label is empty, too long, or Punycode of
            nothing.
    """
    try:
        host, _, _ = url.host or "", url.port, url.user
    except IndexError as error:  # of yarl, for brackets in odd places
        raise ValueError("a malformed authority") from error
    if parse_address(host) is None:
        host.encode("idna")


def is_loopback(url: URL) -> bool:
    """True for `localhost` and literal loopback addresses. Other names may resolve to anything."""
    address = parse_address(url.host or "")
    return url.host == "localhost" or (address is not None and address.is_loopback)


def is_public(address: Address) -> bool:
    """True for addresses that the whole Internet can route to, also looking into IPv6 forms that carry IPv4."""
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or _nat64(address)
        if embedded is not None:
            return is_public(embedded)
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast


def parse_address(host: str) -> Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def forbidden(url: URL, why: str) -> ImageError:
    return ImageError("registry-forbidden", f"the registry may not be asked at {place(url)}: {why}")


def place(url: URL) -> str:
    """Scheme, host and port, for messages: paths and queries may hold tokens."""
    return f"{url.scheme}://{url.host_port_subcomponent or '?'}"


def _nat64(address: IPv6Address) -> IPv4Address | None:
    carries = int(address) >> 32 == int(_NAT64) >> 32
    return IPv4Address(int(address) & 0xFFFFFFFF) if carries else None


def _matches(pattern: str, host: str, port: int) -> bool:
    match = _PATTERN.fullmatch(pattern)
    assert match is not None  # noqa: S101 - checked when the policy was made
    wanted, wanted_port = match[1].strip("[]"), match[2] or "443"
    if wanted_port not in ("*", str(port)):
        return False
    return host.endswith(wanted[1:]) if wanted.startswith("*.") else host == wanted
