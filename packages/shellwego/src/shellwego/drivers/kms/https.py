"""JSON over HTTPS to a KMS: verified, bounded in time and size, never redirected, and never told in an error.

One connection a call, in a thread: calls are rare (an open data key is kept for a minute), and the standard library's
client neither follows redirects nor reads proxies from the environment.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shellwego.core.errors import InvalidError, UnavailableError

CONNECT_S = 5.0
"""For each step of a call: connecting, sending, and each piece of the answer."""
CALL_S = 10.0
MAX_ANSWER = 256 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: Mapping[str, Any]
    """The JSON object; empty where the answer held none."""


class JsonClient:
    """Talks to one host.

    Raises:
        InvalidError: the address is not HTTPS; plain HTTP is taken on loopback only.
    """

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        plain = parts.scheme == "http" and _is_loopback(parts.hostname or "")
        if not parts.hostname or port == -1 or parts.query or parts.username or not (parts.scheme == "https" or plain):
            raise InvalidError("bad-kms-url", "the KMS needs an https address without user and query (kms_url)")
        self.host, self.port, self.path = parts.hostname, port, parts.path.rstrip("/")
        self.netloc = parts.netloc
        self._tls = None if plain else _verified(ca_file)

    async def send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """One call; raises `UnavailableError` where no JSON answer comes in time, or one that leads elsewhere."""
        try:
            async with asyncio.timeout(CALL_S):
                return await asyncio.to_thread(self._send, method, path, body, headers)
        except (OSError, http.client.HTTPException, TimeoutError) as error:
            raise _unavailable(f"it does not answer ({type(error).__name__})") from None

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        connection = self._connection()
        try:
            connection.request(method, self.path + path, body, dict(headers))
            answer = connection.getresponse()
            content = answer.read(MAX_ANSWER + 1)
        finally:
            connection.close()
        if 300 <= answer.status < 400 or len(content) > MAX_ANSWER:
            raise _unavailable(f"it answers what a KMS does not (HTTP {answer.status})")
        return Reply(answer.status, _parsed(content, answer.status))

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_S)
        return http.client.HTTPSConnection(self.host, self.port, timeout=CONNECT_S, context=self._tls)


def refused(status: int, why: str = "") -> UnavailableError:
    """The KMS answered, and not with what was asked. `why` is a code of the KMS, never its text."""
    told = f"{why}, HTTP {status}" if why else f"HTTP {status}"
    return _unavailable(f"it refuses ({told})")


def _unavailable(reason: str) -> UnavailableError:
    return UnavailableError(
        "kms-unavailable",
        f"the KMS that keeps the master key cannot be used: {reason}",
        resolution="See that it runs, can be reached, and that the platform's credentials for it are good.",
    )


def _parsed(content: bytes, status: int) -> Mapping[str, Any]:
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        raise _unavailable(f"its answer is no JSON (HTTP {status})") from None
    if not isinstance(body, dict):
        raise _unavailable(f"its answer is no JSON object (HTTP {status})")
    return body


def _verified(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidError("bad-kms-ca", f"the certificate authority of the KMS cannot be used: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
