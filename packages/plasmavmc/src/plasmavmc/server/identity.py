"""Who calls: from what the transport knows for sure.

Theory. A bearer token is looked up in the policy, on any listener, and stands above the rest: a wrong one is refused, never
passed over. Without one it depends on where the call came in.

- A unix socket. gRPC hands out neither its accepted sockets nor their SO_PEERCRED, and its "local credentials" tell that a
  peer is local, not who it is. So the kernel is asked earlier: each user who is known has a socket of its own, which only
  that user may open (`transport.py`), and *the socket is who calls*. Root and the server's own user can open all of them;
  root could become any user anyway.
- TCP. The subject of the client certificate, which the TLS handshake has checked against the operator's authority.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plasmavmc.errors import UnauthenticatedError
from plasmavmc.rpc.access import Principal
from plasmavmc.rpc.bearer import bearer_token
from plasmavmc.rpc.gate import Context, Identify
from plasmavmc.server.authorizer import PolicyFile

_SUBJECT = "x509_subject"


def by_socket(policy: PolicyFile, uid: int) -> Identify:
    """Callers of the socket that only user `uid` may open."""

    async def identify(context: Context) -> Principal:
        return _by_token(policy, context) or _known(policy.current().of_uid(uid), f"user {uid}")

    return identify


def by_certificate(policy: PolicyFile) -> Identify:
    """Callers over TLS."""

    async def identify(context: Context) -> Principal:
        found = _by_token(policy, context)
        if found is not None:
            return found
        subject = _subject(context.auth_context())
        return _known(policy.current().of_subject(subject), f"certificate {subject!r}")

    return identify


def _subject(authenticated: Mapping[str, Iterable[bytes]]) -> str:
    return next((value.decode(errors="replace") for value in authenticated.get(_SUBJECT, ())), "")


def _by_token(policy: PolicyFile, context: Context) -> Principal | None:
    """The principal of the call's token; None where it has none.

    Raises:
        UnauthenticatedError: it is not valid.
    """
    token = bearer_token(context)
    if token is None:
        return None
    found = policy.current().of_token(token)
    if found is not None:
        return found
    raise UnauthenticatedError("bad-token", "the token is not valid", resolution="Ask an administrator for a new one.")


def _known(found: Principal | None, who: str) -> Principal:
    if found is None:
        raise UnauthenticatedError(
            "unknown-principal",
            f"{who[:200]} is not in the server's policy",
            resolution="Give a token, or ask an administrator for an entry in the policy.",
        )
    return found
