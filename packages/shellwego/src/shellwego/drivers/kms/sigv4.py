"""AWS Signature Version 4, for requests with a body and no query. Pure: the time is given.

https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from shellwego.core.sensitive import Sensitive

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsCredentials:
    access_key: str
    secret_key: Sensitive = field(repr=False)
    session_token: Sensitive | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Place:
    region: str
    service: str


def sign(
    credentials: AwsCredentials,
    place: Place,
    now: float,
    *,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
) -> dict[str, str]:
    """The headers of the request, with date, session token and `Authorization`. `headers` has `Host`."""
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    all_headers = {**headers, "X-Amz-Date": moment}
    if credentials.session_token is not None:
        all_headers["X-Amz-Security-Token"] = credentials.session_token.reveal_text()
    lowered = sorted((name.lower(), " ".join(value.split())) for name, value in all_headers.items())
    signed = ";".join(name for name, _ in lowered)
    lines = "".join(f"{name}:{value}\n" for name, value in lowered)
    request = "\n".join((method, path or "/", "", lines, signed, hashlib.sha256(body).hexdigest()))
    scope = f"{moment[:8]}/{place.region}/{place.service}/aws4_request"
    text = "\n".join((_ALGORITHM, moment, scope, hashlib.sha256(request.encode()).hexdigest()))
    signature = hmac.new(_key(credentials.secret_key, scope), text.encode(), hashlib.sha256).hexdigest()
    by = f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={signed}, Signature={signature}"
    return {**all_headers, "Authorization": by}


def _key(secret: Sensitive, scope: str) -> bytes:
    key = b"AWS4" + secret.reveal()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
