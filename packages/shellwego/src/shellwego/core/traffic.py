"""Adds up what has passed the interfaces of VMs, so that it can be told as counters. Pure.

Theory. The counts of a VM begin and end with its interface, so the sum over the VMs of an app falls when one of them
ends. Whoever reads counters takes a fall for a beginning from zero, and would count all that the other VMs had as new.
So what each VM has grown by since the look before is added to the total of its app, which only rises, until no VM of
the app is left on the node.

What a VM had counted at the very first look is left out, because an agent that begins anew would count it again. What
passes between the last look at a VM and its end is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from shellwego.core.vms import NetworkUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """Of one app on one node; to transmit and to receive is the VMs' part."""

    transmit_packets: int = 0
    transmit_bytes: int = 0
    receive_packets: int = 0
    receive_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTraffic:
    """Of one node, since its agent began."""

    apps: Mapping[str, Passed] = field(default_factory=dict)
    """By id, of those that have VMs there."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Frames that its host did not let pass, by reason."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted up to the last look, and what that found."""

    traffic: NodeTraffic = field(default_factory=NodeTraffic)
    seen: Mapping[str, NetworkUsage] | None = None
    """By VM; None: there was no look yet."""


def tallied(before: Tally, apps: Mapping[str, str], seen: Mapping[str, NetworkUsage]) -> Tally:
    """After another look. `apps`: those of the VMs, by VM; one without is none of an app's."""
    sums = {app_id: before.traffic.apps.get(app_id, Passed()) for vm_id, app_id in apps.items() if vm_id in seen}
    dropped = Counter(before.traffic.dropped)
    for vm_id, now in seen.items():
        known = now if before.seen is None else before.seen.get(vm_id, NetworkUsage())
        if vm_id in apps:
            sums[apps[vm_id]] = _added(sums[apps[vm_id]], known, now)
        dropped.update({reason: _grown(known.dropped.get(reason, 0), count) for reason, count in now.dropped.items()})
    return Tally(NodeTraffic(apps=sums, dropped=dict(dropped)), seen)


def _added(sum_: Passed, before: NetworkUsage, now: NetworkUsage) -> Passed:
    return Passed(
        transmit_packets=sum_.transmit_packets + _grown(before.transmit_packets, now.transmit_packets),
        transmit_bytes=sum_.transmit_bytes + _grown(before.transmit_bytes, now.transmit_bytes),
        receive_packets=sum_.receive_packets + _grown(before.receive_packets, now.receive_packets),
        receive_bytes=sum_.receive_bytes + _grown(before.receive_bytes, now.receive_bytes),
    )


def _grown(before: int, now: int) -> int:
    """A count that is less than it was has begun from zero: a VM that was woken has an interface anew."""
    return now - before if now >= before else now
