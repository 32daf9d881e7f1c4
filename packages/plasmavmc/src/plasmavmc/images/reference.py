"""Image references: `host[:port]/repository[:tag][@digest]` (distribution-spec and Docker's reference grammar). Pure.

A reference needs a host: a first component with a dot, a port or brackets, or `localhost`. Anything shorter, such as
`hello:v1`, is the name of a *loaded* image. No registry is implied, so nobody pulls from a place that he did not name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address

from plasmavmc.errors import ImageError

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,252}[a-zA-Z0-9])?|\[[0-9a-fA-F:.]{2,45}\])(?::[0-9]{1,5})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-{1,32})[a-z0-9]+)*"
_REPOSITORY = rf"{_COMPONENT}(?:/{_COMPONENT}){{0,31}}"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_REFERENCE = re.compile(rf"({_HOST})/({_REPOSITORY})(?::({_TAG}))?(?:@(sha256:[0-9a-f]{{64}}))?")
_NAME = re.compile(rf"(?:({_HOST})/)?({_REPOSITORY})(?::({_TAG}))?")
_LONGEST = 512
_LABEL = 63
"""Of a host name, between its dots (RFC 1035)."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is. With a digest the tag is a remark only."""

    host: str
    """As in a URL: `registry.example`, `127.0.0.1:5000`, `[::1]:5000`."""
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def selector(self) -> str:
        """What to ask the registry for: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


def names_registry(text: str) -> bool:
    """True where a reference begins with a registry's host; False for the name of a loaded image."""
    first, slash, _ = text.partition("/")
    return bool(slash) and (first == "localhost" or "." in first or ":" in first)


def parse_reference(text: str) -> Reference:
    """A reference to an image in a registry.

    Raises:
        ImageError: `image-reference`.
    """
    match = _REFERENCE.fullmatch(text) if len(text) <= _LONGEST and names_registry(text) else None
    if match is None or not (_is_port(match[1]) and _is_host(match[1])):
        raise ImageError(
            "image-reference",
            f"{text[:100]!r} is not an image reference",
            resolution="write HOST[:PORT]/NAME[:TAG][@sha256:…], with a host that has a dot or a port, or is localhost",
        )
    return Reference(match[1].lower(), match[2], match[3], match[4])


def parse_loaded_name(text: str) -> str:
    """A name that a tar gave to its image, with its tag (`latest` where it has none).

    Raises:
        ImageError: `image-reference`.
    """
    match = _NAME.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ImageError("image-reference", f"{text[:100]!r} is not an image name", resolution="write NAME[:TAG]")
    return text if match[3] else f"{text}:latest"


def _is_host(host: str) -> bool:
    """Whether a host is an IPv6 address in brackets, or has no label that a resolver would not take."""
    if host.startswith("["):
        try:
            IPv6Address(host[1 : host.index("]")])
        except AddressValueError:
            return False
        return True
    return all(0 < len(label) <= _LABEL for label in host.partition(":")[0].split("."))


def _is_port(host: str) -> bool:
    _, _, port = host.rpartition("]")[2].rpartition(":")
    return not port.isdigit() or 0 < int(port) < 65536
