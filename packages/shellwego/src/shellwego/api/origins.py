"""How many connections one source address may have to the API, so that none takes all that there are.

Whoever connects has said nothing yet, so this holds for strangers, too. Of IPv6 a /64 counts as one. This host's own
connections are not counted, nor those of networks that the operator names, since behind a balancer everybody has one
address.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

import structlog

from shellwego.control.throttling import source_of
from shellwego.core.egress import Network
from shellwego.core.troubles import Troubles

OF_ADDRESS = 256

_log = structlog.get_logger(__name__)


class Origins:
    """Connections of one server by where they come from; those from `balancers` are not bounded."""

    def __init__(self, balancers: tuple[Network, ...] = (), of_address: int = OF_ADDRESS) -> None:
        self._balancers = balancers
        self._of_address = of_address
        self._open: Counter[str] = Counter()
        self._troubles = Troubles()

    def enter(self, address: str) -> Callable[[], None] | None:
        """Count a connection; what takes it off the count again. None: it is one too many."""
        if self._is_free(address):
            return _nothing
        source = source_of(address)
        if self._open[source] >= self._of_address:
            self._tell(source)
            return None
        self._open[source] += 1
        return lambda: self._leave(source)

    def _is_free(self, address: str) -> bool:
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return True  # a socket of this host
        meant = getattr(parsed, "ipv4_mapped", None) or parsed
        return meant.is_loopback or any(meant in network for network in self._balancers)

    def _leave(self, source: str) -> None:
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]

    def _tell(self, source: str) -> None:
        words = f"{source} has {self._of_address} connections, and gets no more"
        if trouble := self._troubles.failed("connections", words, time.monotonic()):
            resolution = "If it is a balancer, name it in api_balancers, table [up]."
            _log.warning("api.connection_refused", reason=words, resolution=resolution, **trouble.fields)


def _nothing() -> None:
    """It was not counted."""
