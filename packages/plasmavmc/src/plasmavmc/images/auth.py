"""Registry authentication: challenges and tokens (distribution-spec; Docker "Token Authentication Specification"). Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from yarl import URL

from plasmavmc.errors import ImageError
from plasmavmc.images.documents import as_text, parse_object
from plasmavmc.images.limits import TOKEN_BYTES
from plasmavmc.images.policy import check_parts

_SCHEME = re.compile(r"\s*([A-Za-z]+)\s+")
_PARAMETER = re.compile(r'([A-Za-z_]+)=(?:"([^"\\]*)"|([^\s,"]+))\s*,?\s*')
_LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an operator gave for one registry. Never shown."""

    username: str
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Challenge:
    scheme: str
    """`bearer` or `basic`, in lower case."""
    parameters: Mapping[str, str]


def parse_challenge(header: str) -> Challenge | None:
    """The first challenge of a `WWW-Authenticate` header (RFC 9110, 11.6.1); None where it has none that we know."""
    match = _SCHEME.match(header) if len(header) <= _LONGEST else None
    if match is None:
        return None
    scheme = match[1].lower()
    parameters = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(header[match.end() :])}
    return Challenge(scheme, parameters) if scheme in ("bearer", "basic") else None


def token_url(challenge: Challenge, repository: str) -> URL:
    """Where to ask for a token to pull from `repository`. We ask for that and no more, whatever the challenge says.

    Raises:
        ImageError: `registry-protocol`: no realm that is a URL.
    """
    try:
        realm = URL(challenge.parameters.get("realm", ""))
        query = {"service": challenge.parameters.get("service", ""), "scope": f"repository:{repository}:pull"}
        if not realm.absolute:
            raise ValueError("not absolute")
        url = realm.update_query({key: value for key, value in query.items() if value})
        check_parts(url)
        return url
    except (ValueError, TypeError, IndexError) as error:  # yarl has the last one for brackets in odd places
        raise ImageError("registry-protocol", "the registry asks for a token, but names no place to get it") from error


def parse_token(body: bytes) -> str:
    """The Authorization header for the token in a token server's answer. It is used until it is refused.

    Raises:
        ImageError: `image-document`, `registry-protocol`.
    """
    answer = parse_object(body, "the token server's answer", TOKEN_BYTES)
    token = as_text(answer.get("token"), "token") or as_text(answer.get("access_token"), "access_token")
    if not token or not token.isprintable() or not token.isascii():
        raise ImageError("registry-protocol", "the token server's answer holds no token")
    return f"Bearer {token}"
