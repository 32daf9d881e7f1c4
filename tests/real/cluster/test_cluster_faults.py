"""Three servers, three nodes, two edges: what breaks under load, what of it clients feel, and how soon all agree again.

By night; `SWG_CLUSTER_FAULTS=word` runs only the faults whose names have that word.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from tests.real.cluster.agreement import disagreements
from tests.real.cluster.faults import FAULTS, SLACK_S, Fault
from tests.real.cluster.hosts import Cluster, running_cluster
from tests.real.cluster.journal import Journal
from tests.real.cluster.watch import Watch
from tests.real.platform_harness import told, until

pytestmark = [pytest.mark.real, pytest.mark.nightly]

HEALED_S = 30.0
BOOT_S = 60.0
"""Beyond which it is not the machine that takes long to boot a VM; CPUs are emulated, and others may use the cores."""
QUIET_S = 1.0
LOGGED_S = 15.0
"""Within which what a VM wrote is in its log: the last answers of a journal come before their lines are there."""


@dataclass(slots=True)
class Told:
    """What a fault did, a row of the report."""

    fault: Fault
    requests: int
    failed: int
    api_requests: int
    api_failed: int
    doubled: int
    lost: int
    noticed_s: float | None
    healed_s: float
    led_by_many: bool = False
    """Who was to notice was another one before it did."""
    wrong: list[str] = field(default_factory=list)

    def row(self) -> str:
        noticed = "–" if self.noticed_s is None else f"{self.noticed_s:.1f} s{'*' * self.led_by_many}"
        return (
            f"{self.fault.name:<34} │ {self.requests:>5} {self.failed:>4} │ {self.api_requests:>4} {self.api_failed:>4} │"
            f" {self.doubled:>3} {self.lost:>3} │ {noticed:>7} │ {self.healed_s:>5.1f} s"
        )


HEAD = (
    f"{'fault':<34} │ {'app':>5} {'fail':>4} │ {'API':>4} {'fail':>4} │ {'2×':>3} {'0×':>3} │ {'noticed':>7} │ healed"
)


def test_whatever_breaks_is_noticed_and_healed_and_clients_feel_no_more_than_they_must() -> None:
    chosen = [fault for fault in FAULTS if os.environ.get("SWG_CLUSTER_FAULTS", "") in fault.name]
    with running_cluster() as cluster:
        until(lambda: not disagreements(cluster), "all serve and agree", within_s=180)
        print(f"\n{HEAD}")
        with Watch(cluster) as watch:
            rows = [tell(cluster, watch, fault) for fault in chosen]
        print(cluster.logs() if any(row.wrong for row in rows) else "")
    print("\n".join((HEAD, *(row.row() for row in rows))))
    assert watch.looks
    assert not watch.undeclared
    wrong = [f"{row.fault.name}: {words}" for row in rows for words in row.wrong]
    assert not wrong, "\n".join(wrong)


def tell(cluster: Cluster, watch: Watch, fault: Fault) -> Told:
    """Let it befall the platform under load, heal it, and see what came of it."""
    steady(cluster)
    noticed, by_many, wrong, vmms = None, False, list[str](), _vmms(cluster)
    with Journal(cluster) as journal:
        time.sleep(QUIET_S)
        began, takeovers = time.monotonic(), watch.takeovers
        with fault.befall(cluster) as seen:
            if seen is not None:
                while not seen() and time.monotonic() < began + HEALED_S:
                    time.sleep(0.05)
                noticed = time.monotonic() - began
                by_many = fault.by_silence and watch.takeovers > takeovers
        healed = time.monotonic()
        while (wrong := disagreements(cluster)) and time.monotonic() < healed + HEALED_S + BOOT_S:
            time.sleep(0.2)
        took = time.monotonic() - healed
        time.sleep(QUIET_S)
    if not fault.lines_may_go:
        with suppress(AssertionError):
            until(lambda: not journal.lost(), "all that was acknowledged is logged", within_s=LOGGED_S)
    found = _told(journal, fault, noticed, took)
    found.led_by_many = by_many
    found.wrong = [*wrong, *complaints(cluster, journal, found)]
    if not fault.vms_may_go and _vmms(cluster) != vmms:
        found.wrong.append("VMs were touched")
    print(found.row(), *found.wrong, sep="\n    ", flush=True)
    return found


def _vmms(cluster: Cluster) -> set[int]:
    return {pid for node in cluster.nodes for pid in node.vmms()}


def steady(cluster: Cluster) -> None:
    """Let each fault find the platform alike: no node has a bad name for what befell it before, and the last one, which the
    faults choose, has a VM."""
    for node in cluster.nodes:  # which also forgives one that went down thrice
        cluster.api.post(f"/v1/nodes/{node.name}/actions/uncordon")
    if not cluster.nodes[-1].vmms():
        fullest = max(cluster.nodes, key=lambda node: len(node.vmms()))
        cluster.api.post(f"/v1/nodes/{fullest.name}/actions/drain", {})
        state = "SELECT scheduling FROM nodes WHERE name = %s"
        until(
            lambda: cluster.sql(state, fullest.name) == [("drained",)],
            f"{fullest.name} is drained",
            within_s=HEALED_S + BOOT_S,
        )
        cluster.api.post(f"/v1/nodes/{fullest.name}/actions/uncordon")
        until(lambda: not disagreements(cluster), "all agree", within_s=HEALED_S)


def _told(journal: Journal, fault: Fault, noticed: float | None, healed: float) -> Told:
    return Told(
        fault,
        requests=len(journal.samples),
        failed=len(journal.failed),
        api_requests=len(journal.api.asked),
        api_failed=len(journal.api.failed),
        doubled=len(journal.doubled()) + len(journal.api.doubled()),
        lost=len(journal.lost()),
        noticed_s=noticed,
        healed_s=healed,
    )


def complaints(cluster: Cluster, journal: Journal, found: Told) -> Iterator[str]:
    """What the platform does not keep of what it says."""
    fault = found.fault
    if found.failed > fault.app_failures:
        yield f"{found.failed} requests to the app failed: {told(journal.failed)}"
    if fault.api_failures is not None and found.api_failed > fault.api_failures:
        yield f"{found.api_failed} requests to the API failed: {journal.api.failed[:5]}"
    if found.doubled:
        yield f"done twice: {sorted(journal.doubled())[:5]} {journal.api.doubled()[:5]}"
    if found.lost and not fault.lines_may_go:
        yield f"acknowledged and lost: {sorted(journal.lost())[:5]}"
    if (found.noticed_s or 0.0) > fault.noticed_s * (1 + found.led_by_many) + SLACK_S:
        yield f"noticed after {found.noticed_s:.1f} s"
    if found.healed_s > HEALED_S + (BOOT_S if fault.vms_may_go else 0):
        yield f"healed after {found.healed_s:.1f} s"
    again = [asked for asked in journal.api.ask_again() if asked.answer.status != 201]
    if again:
        yield f"repeated under their own keys: {again[:5]}"
    names = [name for (name,) in cluster.sql("SELECT name FROM apps")]
    missing = [app for app in journal.api.made() if names.count(app) != 1]
    if missing:
        yield f"acknowledged, and not there exactly once: {missing[:5]}"
