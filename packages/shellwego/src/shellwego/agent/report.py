"""What to tell the control plane: whatever changed since it last confirmed, and everything once after a registration.

A report that was lost, or whose answer was, is told again under a new sequence. Instances of which nothing can be told yet
(`Checker.unsettled`) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shellwego.core.assignments import NodeReport
from shellwego.core.instances import Observed, Phase
from shellwego.core.nodes import NodeFacts


class Reports:
    """Builds reports and remembers which were confirmed."""

    def __init__(self) -> None:
        self._confirmed: dict[str, Observed] = {}

    def start_over(self) -> None:
        """Tell everything again: the control plane may have forgotten, or began a new epoch."""
        self._confirmed.clear()

    def has_news(self, observed: Mapping[str, Observed] | None, unsettled: frozenset[str]) -> bool:
        """True where a report is worth sending before the next heart-beat."""
        return bool(self._news(observed or {}, unsettled))

    def is_urgent(self, observed: Mapping[str, Observed] | None, unsettled: frozenset[str]) -> bool:
        """True where it says more than how far a start has come, which nothing waits for."""
        news = self._news(observed or {}, unsettled)
        return any(_settled(seen) != _settled(self._confirmed.get(id_)) for id_, seen in news.items())

    def build(
        self,
        *,
        node_id: str,
        epoch: int,
        sequence: int,
        facts: NodeFacts,
        observed: Mapping[str, Observed] | None,
        unsettled: frozenset[str],
    ) -> NodeReport:
        """The next report. `observed` is None before the first look."""
        told = self._news(observed or {}, unsettled)
        return NodeReport(
            node_id=node_id,
            epoch=epoch,
            sequence=sequence,
            facts=facts,
            instances={id_: replace(seen, epoch=epoch, sequence=sequence) for id_, seen in told.items()},
        )

    def confirm(self, report: NodeReport, observed: Mapping[str, Observed] | None) -> None:
        """The control plane has taken it; `observed` is what is there now."""
        told = {id_: replace(seen, epoch=0, sequence=0) for id_, seen in report.instances.items()}
        self._confirmed = {id_: seen for id_, seen in (self._confirmed | told).items() if id_ in (observed or {})}

    def _news(self, observed: Mapping[str, Observed], unsettled: frozenset[str]) -> dict[str, Observed]:
        """What it does not know yet."""
        return {
            id_: seen for id_, seen in observed.items() if id_ not in unsettled and self._confirmed.get(id_) != seen
        }


def _settled(seen: Observed | None) -> Observed | None:
    """An observation without what changes in the course of a start; nothing, for an instance that has only just begun."""
    if seen is None or seen.phase is not Phase.STARTING:
        return seen
    return replace(seen, detail="", address="") if seen.ends else None
