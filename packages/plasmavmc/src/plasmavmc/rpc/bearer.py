"""Bearer tokens in a call's metadata: `authorization: Bearer …` (RFC 6750, section 2.1)."""

from __future__ import annotations

from plasmavmc.rpc.gate import Context

_MAX_TOKEN = 512


def bearer_token(context: Context) -> str | None:
    """The token that a call carries: empty where what it carries can be none, None where it carries nothing."""
    headers = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not headers:
        return None
    scheme, _, token = headers[0].partition(" ")
    return token if len(headers) == 1 and scheme.lower() == "bearer" and len(token) <= _MAX_TOKEN else ""
