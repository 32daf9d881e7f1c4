"""The tokens of a NATS server in operator mode: JWTs signed with NKeys. Pure: `now` and lifetimes are seconds, given.

An operator's token is the root that the server is configured with; it signs accounts, which are apart from one another; an
account signs its users. Source: the JWT documentation of NATS (`docs.nats.io`, decentralized authentication), version 2.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from shellwego.core.nkeys import NKey

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_VERSION = 2
_NO_LIMIT = -1
MEMORY_BYTES = 64 * 1024 * 1024
"""What the streams of an account may take of a server's memory."""
LISTENER_SUBSCRIPTIONS = 16
"""A listener apart may have so many at a time."""

Claims = dict[str, object]


@dataclass(frozen=True, slots=True)
class Audience:
    """A user who only listens, and to what."""

    subjects: Sequence[str]


def operator_token(operator: NKey, system_account: str, now: float) -> str:
    """What a server is configured with."""
    return _signed(operator, operator.public, "shellwego", now, {"type": "operator", "system_account": system_account})


def account_token(
    operator: NKey, account: str, name: str, now: float, *, streams: bool, revoked: Mapping[str, int] | None = None
) -> str:
    """An account; `revoked` are public keys of its users, with the second up to which what was signed for them is void."""
    stored = MEMORY_BYTES if streams else 0
    limits = {key: _NO_LIMIT for key in ("subs", "data", "payload", "imports", "exports", "conn", "leaf")}
    limits |= {"mem_storage": stored, "streams": _NO_LIMIT if streams else 0, "consumer": _NO_LIMIT if streams else 0}
    body: Claims = {"type": "account", "limits": {**limits, "wildcards": True}, "default_permissions": {}}
    if revoked:
        body["revocations"] = dict(sorted(revoked.items()))
    return _signed(operator, account, name, now, body)


def user_token(
    account: NKey, user: str, name: str, *, now: float, lifetime_s: float, audience: Audience | None = None
) -> str:
    """A user of the account; without an audience he may do everything within it."""
    body: Claims = {"type": "user", "data": _NO_LIMIT, "payload": _NO_LIMIT, "subs": _NO_LIMIT}
    if audience is not None:
        body |= {
            "subs": LISTENER_SUBSCRIPTIONS,
            "pub": {"deny": [">"]},
            "sub": {"allow": list(audience.subjects)},
            "allowed_connection_types": ["STANDARD"],
        }
    return _signed(account, user, name, now, body, expires=int(now + lifetime_s))


class _Body(msgspec.Struct):
    revocations: dict[str, int] = {}


class _Account(msgspec.Struct):
    nats: _Body


def revoked_in(token: str) -> dict[str, int]:
    """The revocations of an account's token.

    Raises:
        ValueError: it is none.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("no token")
    body = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    return msgspec.json.decode(body, type=_Account).nats.revocations


def _signed(issuer: NKey, subject: str, name: str, now: float, body: Claims, *, expires: int | None = None) -> str:
    claims: Claims = {"iat": int(now), "iss": issuer.public, "name": name, "sub": subject}
    if expires is not None:
        claims["exp"] = expires
    claims["nats"] = {**body, "version": _VERSION}
    digest = hashlib.sha256(json.dumps(claims, sort_keys=True).encode()).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signing = f"{_encoded(_HEADER)}.{_encoded(claims)}"
    return f"{signing}.{_base64(issuer.sign(signing.encode()))}"


def _encoded(document: Mapping[str, object]) -> str:
    return _base64(json.dumps(document, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
