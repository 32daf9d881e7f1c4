"""Leases of volumes that could be in use twice: those with a standby replica, which becomes the volume where its node
is lost.

Theory. A node has such a volume for a term. Each report that the control plane takes from the node, in the node's
current epoch, begins the term anew for all of them, and the answer to the report tells the agent so. The agent counts
from the moment at which it *asked*, by its monotonic clock. So its term ends before the one that was granted does,
however long the report and its answer took. No wall clock takes part, neither the node's nor the store's, because it
may be set.

    asked ──────────────── ⅔ ─────────── 11⁄12 ─── term · granted + term ── + margin
    the VM runs             it is stopped  it is killed                       the replica may become the volume

At two thirds of the term the agent begins to stop the VMs that have the volume, so that they end cleanly. At eleven
twelfths the host kills them (`plasmavmc.host.helper.fences`), also where the agent was killed, is paused or hangs. The
control plane measures the node's silence itself (`core.liveness`), for a full term and a margin for what may be unsure
about it.

So an app with such a volume bears an outage of two thirds of the term: when its node, or the platform, is away for
longer, it is stopped. A volume without a standby replica has no lease, and bears any outage.

What makes a volume safe to promote is that its node reported that the volume is fenced there (`ObservedVolume.leased`),
not that the node was told to fence it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shellwego.core.assignments import VolumeOrder, Workload
from shellwego.core.liveness import BEAT_S

TERM_S = 60.0
STOP_SHARE, END_SHARE = 2 / 3, 11 / 12
HURRY_S = 8.0
"""From the end of a VM's own grace until it would be killed: so long its guest may take to be gone."""
UNWRITTEN_S = BEAT_S / 2
"""A report that comes so soon after another is not written down, and begins a term all the same."""
MARGIN_S = 3.0
"""For clocks that do not run alike, and for what is killed to be gone."""
OVER_S = TERM_S + UNWRITTEN_S + MARGIN_S
"""So much silence of a node, and no lease that it was ever granted is in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLease:
    """What a node counts on for one volume. Moments are of its monotonic clock."""

    asked_at: float
    """When the report began that was answered last."""
    term_s: float

    @property
    def begin_by(self) -> float:
        """A node that does not hold it yet begins it before then, or with the next one."""
        return self.asked_at + self.term_s * STOP_SHARE / 2

    @property
    def stop_at(self) -> float:
        """Whatever has it is asked to end, and nothing begins with it any more."""
        return self.asked_at + self.term_s * STOP_SHARE

    @property
    def end_at(self) -> float:
        """Whatever has it still is killed."""
        return self.asked_at + self.term_s * END_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Lapse:
    """An instance may not begin, for one of its volumes is not leased to its node now."""

    reason: str
    left_s: float | None = None
    """What has the volume is to end, and has so long; None: it may go on."""


def leases_of(orders: Iterable[VolumeOrder], asked_at: float) -> dict[str, VolumeLease]:
    """The leases that a node has, by volume, since a report was answered that began then."""
    return {order.volume_id: VolumeLease(asked_at=asked_at, term_s=order.lease_s) for order in orders if order.lease_s}


def lapse(
    workload: Workload, orders: Mapping[str, VolumeOrder], leases: Mapping[str, VolumeLease], now: float
) -> Lapse | None:
    """Why an instance may not begin now, as far as leases go, and whether what runs of it has to end. `leases` are those by
    which the host will kill it: what is not in force there yet is none."""
    lapses: list[Lapse] = []
    for mount in workload.mounts:
        order, lease = orders.get(mount.volume_id), leases.get(mount.volume_id)
        if order is None or not order.lease_s:
            continue
        if lease is None:
            lapses.append(Lapse(reason=f"the volume {mount.name} is not leased to this node yet"))
        elif now >= lease.stop_at:
            silent_s = now - lease.asked_at
            text = f"the lease of the volume {mount.name} runs out: no control plane was heard for {silent_s:.0f} s"
            lapses.append(Lapse(reason=text, left_s=max(lease.end_at - now, 0.0)))
    return min(lapses, key=lambda each: float("inf") if each.left_s is None else each.left_s, default=None)


def grace_s(own_s: float, left_s: float) -> float:
    """How long a VM may take to end cleanly, if it would like `own_s` and is killed in `left_s`."""
    return max(min(own_s, left_s - HURRY_S), 0.0)


def over(silence_s: float) -> bool:
    """Whether no lease that a node was granted is in force, after so much silence of it that was listened to."""
    return silence_s >= OVER_S
