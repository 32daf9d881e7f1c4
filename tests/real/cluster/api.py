"""The platform's API as its clients see it: one connection a request, nothing repeated."""

from __future__ import annotations

import http.client
import json
import ssl
from contextlib import closing
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; status 0: nothing did, and `code` says why."""

    status: int
    code: str = ""
    body: Any = None


@dataclass(frozen=True, slots=True)
class Api:
    """The API at an address."""

    host: str
    port: int
    token: str

    def ask(self, method: str, path: str, body: object = None, key: str = "") -> Answer:
        """One request; `key`: its idempotency key."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", "Connection": "close"}
        if key:
            headers["Idempotency-Key"] = key
        content = None if body is None else json.dumps(body)
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_S, context=_context())
        try:
            with closing(connection):
                connection.request(method, path, body=content, headers=headers)
                response = connection.getresponse()
                found = json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Answer(0, f"{type(error).__name__}: {error}")
        code = found.get("code", "") if response.status >= 400 and isinstance(found, dict) else ""
        return Answer(response.status, code, found)

    def answers(self) -> bool:
        """Whether a server is ready."""
        return self.ask("GET", "/readyz").status == 200

    def post(self, path: str, body: object = None) -> Any:
        """A request that has to succeed."""
        answer = self.ask("POST", path, body)
        assert 200 <= answer.status < 300, f"POST {path}: {answer}"
        return answer.body


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
