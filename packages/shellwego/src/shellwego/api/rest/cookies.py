"""The session of a browser: a cookie that scripts cannot read and other sites cannot use.

Theory. `__Host-` ties the cookie to this very host, over TLS (browsers count loopback as such). `SameSite=Strict` keeps a
browser from sending it along with a request that another site began. That is the browser's word, and a neighbour on the
same registrable domain is the same *site*, so the server looks by itself: a request that changes something, or opens a
WebSocket, must come with an `Origin` that is this host, which a page cannot forge (Fetch standard, section 3.1). No token
in a form is needed then. A request that only reads is answered without it: other origins cannot see the answer.

The session lives a day and does not slide: what is stolen ends by itself, and so does what is forgotten.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import Response

from shellwego.core.errors import ForbiddenError

COOKIE = "__Host-shellwego-session"
_SESSION = re.compile(r"ses_[0-9A-Za-z]{43}")
_SAFE = frozenset({"GET", "HEAD"})


def session_cookie(connection: HTTPConnection) -> str:
    """The session's token; empty: there is none. Other kinds are not taken from a cookie."""
    secret = connection.cookies.get(COOKIE, "")
    return secret if _SESSION.fullmatch(secret) else ""


def refuse_cross_site(connection: HTTPConnection) -> None:
    """Refuse what another origin may have made a browser send.

    Raises:
        ForbiddenError: the request changes something and does not come from a page of this host.
    """
    if connection.scope["type"] == "http" and connection.scope["method"] in _SAFE:
        return
    origin = connection.headers.get("origin", "")
    if not (origin and _is_own(connection, origin)):
        raise _foreign_origin()


def refuse_foreign_login(connection: HTTPConnection) -> None:
    """As `refuse_cross_site`, for who signs in: another site shall not sign its visitors in as somebody else. A client
    that is no browser sends no `Origin`, and may. Raises `ForbiddenError`."""
    origin = connection.headers.get("origin")
    if origin is not None and not _is_own(connection, origin):
        raise _foreign_origin()


def set_session(response: Response, secret: str, life_s: float) -> None:
    """Have the browser keep the session."""
    response.set_cookie(COOKIE, secret, max_age=int(life_s), path="/", secure=True, httponly=True, samesite="strict")


def forget_session(response: Response) -> None:
    """Have the browser forget it."""
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")


def _is_own(connection: HTTPConnection, origin: str) -> bool:
    """By host and port; the scheme may be that of a proxy before us."""
    try:
        return urlsplit(origin).netloc.lower() == connection.headers.get("host", "").lower() != ""
    except ValueError:
        return False


def _foreign_origin() -> ForbiddenError:
    return ForbiddenError(
        "cross-site",
        "the request was not made by a page of this host",
        resolution="Send it with the Origin of the platform, or with a token in the Authorization header.",
    )
