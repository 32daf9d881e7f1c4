"""What one tenant may have open at once of what the API bears for all.

The rate of a token counts what begins; a stream lasts as long as its token, a wait for a minute, and a body that comes
slowly for longer. So what is open is counted, too: all requests of a principal, however many tokens it has, and of an
organization what is about it and lasts. Operators are no tenants, and are not counted. Each server counts for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from shellwego.control.authorization import Access
from shellwego.core.errors import ThrottledError
from shellwego.core.tenancy import Principal

OF_PRINCIPAL = 128
OF_ORGANIZATION = 256
_RETRY_AFTER_S = 5


class Shares:
    """What is open on one server."""

    def __init__(self, of_principal: int = OF_PRINCIPAL, of_organization: int = OF_ORGANIZATION) -> None:
        self._of_principal = of_principal
        self._of_organization = of_organization
        self._open: Counter[str] = Counter()

    @contextmanager
    def request(self, principal: Principal) -> Iterator[None]:
        """A request, from when it is known who asks until it is answered whole; raises `ThrottledError`."""
        with self._held(principal, principal.principal_id, self._of_principal, "requests of this principal"):
            yield

    @contextmanager
    def lasting(self, access: Access) -> Iterator[None]:
        """A stream, or a wait, about what was found last; raises `ThrottledError`."""
        organization, most = access.scope.organization_id, self._of_organization
        with self._held(access.principal, organization, most, "streams and waits of this organization"):
            yield

    @contextmanager
    def _held(self, principal: Principal, key: str, most: int, words: str) -> Iterator[None]:
        if not key or any(not grant.scope_id for grant in principal.grants):
            yield
            return
        if self._open[key] >= most:
            raise ThrottledError(
                "too-many-open",
                f"{most} {words} are open",
                resolution="End some of them, or try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
