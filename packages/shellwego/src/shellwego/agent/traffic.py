"""What the VMs of this node sent and received, counted now and then, for the next report to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shellwego.core.traffic import NodeTraffic, Tally, tallied
from shellwego.ports.engine import Engine

COUNT_S = 10.0
"""Between two looks. Who reads metrics asks every 15 s or so."""


class Traffic:
    """Counts. Raises what the engine raises; what was counted stays as it was then."""

    def __init__(self, engine: Engine, apps: Callable[[], Mapping[str, str]]) -> None:
        """`apps`: the ids of those of the VMs here, by VM."""
        self._engine = engine
        self._apps = apps
        self._tally = Tally()
        self.news: NodeTraffic | None = None
        """What no report has told yet."""

    async def count(self) -> None:
        """Look once."""
        seen = await self._engine.traffic()
        self._tally = tallied(self._tally, self._apps(), seen)
        self.news = self._tally.traffic

    def told(self, traffic: NodeTraffic | None) -> None:
        """The control plane has it."""
        if traffic is self.news:
            self.news = None
