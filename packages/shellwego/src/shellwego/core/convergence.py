"""What an agent does next, from what it was told and what it sees. Pure: looks in, actions and observations out.

Theory. An instance is a row of attempts, each a one-shot VM that is never brought back. At every look the agent compares
its assignments with the VMs of its host and gets at most one order an instance: run the next attempt, stop, delete. What
must be known between two looks (which ends were counted, when the next attempt is due) is a value, `attempts.Memory`, that
goes in and comes out; an agent that lost it goes on from the attempts it finds on the host. What is told of each instance
follows from the same values (`observation`).

Traps. The VM of the last attempt that ended stays until the next one is there: it is the evidence of a restarted agent, and
its log is what people ask for. An order is not remembered as done until its VM is seen, and its VM id follows from instance
and attempt alone, so an order given twice is one VM. What no assignment names is stopped, so an agent must not look before
it has fetched its assignments once. A VM that cannot be put to sleep runs on, and that is said; one whose memory cannot be
had any more is replaced by the next attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from shellwego.core.assignments import Assignment, Workload
from shellwego.core.attempts import FORGET_S, Memory, current_of, remember
from shellwego.core.destinations import Destination
from shellwego.core.health import Health, Verdict
from shellwego.core.ids import make_id
from shellwego.core.instances import Observed
from shellwego.core.observation import is_between, observe
from shellwego.core.openings import Ingress
from shellwego.core.vms import VmPhase, VmView
from shellwego.core.volumeleases import Lapse, grace_s

UNASSIGNED_GRACE_S = 10.0
"""For VMs whose assignment, and with it the app's own grace, is gone."""
NO_OBSTACLES: Mapping[str, str] = MappingProxyType({})
NO_LAPSES: Mapping[str, Lapse] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunVm:
    """Start attempt n of an instance; the VM id is the same whenever this is asked again."""

    vm_id: str
    instance_id: str
    attempt: int
    workload: Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchVm:
    """Have attempt n of an instance asleep here, with the memory that another node has; asked again as `RunVm`."""

    vm_id: str
    instance_id: str
    attempt: int
    workload: Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class StopVm:
    vm_id: str
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteVm:
    """Remove a VM that has ended, with its disk."""

    vm_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendVm:
    """Put a running VM on disk."""

    vm_id: str
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeVm:
    """Let a VM on disk run on."""

    vm_id: str
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestrictVm:
    """Have a VM open connections as its workload says by now."""

    vm_id: str
    egress: tuple[Destination, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenVm:
    """Have a VM be known as its app's, and take what its workload says by now."""

    vm_id: str
    identity: str
    ingress: Ingress


Action = RunVm | FetchVm | StopVm | DeleteVm | SuspendVm | ResumeVm | RestrictVm | ScreenVm


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """One look's outcome: act, keep the memories for the next look, report the observations, look again at `wake_at`."""

    actions: tuple[Action, ...]
    memories: Mapping[str, Memory]
    observed: Mapping[str, Observed] = field(default_factory=dict)
    wake_at: float | None = None
    """Monotonic time at which time alone changes something; None: never."""


def converge(
    assignments: Iterable[Assignment],
    vms: Iterable[VmView],
    memories: Mapping[str, Memory],
    health: Mapping[str, Health],
    now: float,
    *,
    obstacles: Mapping[str, str] = NO_OBSTACLES,
    lapses: Mapping[str, Lapse] = NO_LAPSES,
) -> Convergence:
    """Everything one look needs: weigh what ended, decide what to do, say what was seen.

    `health` is by VM id, `memories` and the observations by instance id; `now` is monotonic. `obstacles` are why no VM of an
    instance can begin yet: its volumes (`core.volume_convergence.obstacle`). `lapses` are those whose leases of volumes are
    not in force (`core.volumeleases.lapse`).
    """
    wanted = {assignment.instance_id: assignment for assignment in assignments}
    seen = _by_instance(vms)
    remembered = {
        id_: remember(memories.get(id_, Memory()), assignment, seen.get(id_, ()), health, now)
        for id_, assignment in wanted.items()
    }
    return Convergence(
        actions=diff(wanted.values(), seen, remembered, now, obstacles=obstacles, lapses=lapses),
        memories=remembered,
        observed={
            id_: observe(assignment, seen.get(id_, ()), remembered[id_], health, obstacles.get(id_, ""))
            for id_, assignment in wanted.items()
            if not (assignment.present and is_between(seen.get(id_, ())))
        },
        wake_at=_wake_at(remembered, seen, health, now),
    )


def vm_id(instance_id: str, attempt: int) -> str:
    """The id of an attempt's VM: no chance in it, so that an order can be repeated."""
    digest = hashlib.sha256(f"{instance_id}/{attempt}".encode()).digest()
    return make_id("vm", int.from_bytes(digest[10:16], "big"), digest[:10])


def diff(
    assignments: Iterable[Assignment],
    vms: Mapping[str, Sequence[VmView]],
    memories: Mapping[str, Memory],
    now: float,
    *,
    obstacles: Mapping[str, str] = NO_OBSTACLES,
    lapses: Mapping[str, Lapse] = NO_LAPSES,
) -> tuple[Action, ...]:
    """What to do so that the host holds what it should; `vms` are by instance."""
    wanted = {assignment.instance_id: assignment for assignment in assignments}
    actions: list[Action] = []
    for id_, assignment in wanted.items():
        own = vms.get(id_, ())
        if assignment.present:
            memory, obstacle, lapse = memories.get(id_, Memory()), obstacles.get(id_, ""), lapses.get(id_)
            actions += [
                each
                for each in _keep_running(assignment, own, memory, now, lapse)
                if not ((obstacle or lapse) and isinstance(each, RunVm))
            ]
        else:
            actions += _remove(own, assignment.workload.stop_grace_s)
    for id_, own in vms.items():
        if id_ not in wanted:
            actions += _remove(own, UNASSIGNED_GRACE_S)
    return tuple(actions)


def _keep_running(
    assignment: Assignment, vms: Sequence[VmView], memory: Memory, now: float, lapse: Lapse | None
) -> Iterator[Action]:
    current, grace = current_of(vms), assignment.workload.stop_grace_s
    yield from _remove([vm for vm in vms if vm is not current], grace)
    if memory.outcome is not None:
        return
    if current is not None and current.phase is not VmPhase.ENDED:
        if current.egress != assignment.workload.egress:  # first, so that it never wakes with an older one
            yield RestrictVm(vm_id=current.vm_id, egress=assignment.workload.egress)
        identity, ingress = assignment.workload.app_id, assignment.workload.ingress
        if (current.identity, current.ingress) != (identity, ingress):
            yield ScreenVm(vm_id=current.vm_id, identity=identity, ingress=ingress)
        if lapse is None:
            yield from _sleep_or_wake(assignment, current, memory, now)
        elif lapse.left_s is not None and current.phase is not VmPhase.ASLEEP:
            yield from _remove([current], grace_s(grace, lapse.left_s))
        return
    if assignment.memory_of and (memory.left or memory.attempt):
        return  # it had, or will have, no memory to go on with, and is not to begin without
    if now >= memory.next_try:
        attempt = memory.attempt + 1
        order = FetchVm if assignment.memory_of else RunVm
        yield order(
            vm_id=vm_id(assignment.instance_id, attempt),
            instance_id=assignment.instance_id,
            attempt=attempt,
            workload=assignment.workload,
        )


def _sleep_or_wake(assignment: Assignment, vm: VmView, memory: Memory, now: float) -> Iterator[Action]:
    """A suspend that failed is not tried again by itself: its reason is told, and whoever asked decides. A memory that
    cannot be had any more is given up; what may pass is tried again."""
    if assignment.asleep and vm.phase is VmPhase.RUNNING and memory.stuck is None:
        yield SuspendVm(vm_id=vm.vm_id, instance_id=assignment.instance_id)
    if assignment.asleep or vm.phase is not VmPhase.ASLEEP:
        return
    if memory.stuck is not None and memory.stuck.permanent:
        yield StopVm(vm_id=vm.vm_id, grace_s=0)
    elif memory.stuck is None or now >= memory.next_try:
        yield ResumeVm(vm_id=vm.vm_id, instance_id=assignment.instance_id)


def _remove(vms: Iterable[VmView], grace_s: float) -> Iterator[Action]:
    for vm in vms:
        if vm.phase is VmPhase.ENDED:
            yield DeleteVm(vm_id=vm.vm_id)
        elif vm.phase is not VmPhase.STOPPING:
            yield StopVm(vm_id=vm.vm_id, grace_s=grace_s)


def _by_instance(vms: Iterable[VmView]) -> dict[str, list[VmView]]:
    """VMs without an instance belong to somebody else and are left alone."""
    grouped: dict[str, list[VmView]] = {}
    for vm in vms:
        if vm.instance_id:
            grouped.setdefault(vm.instance_id, []).append(vm)
    return grouped


def _wake_at(
    memories: Mapping[str, Memory],
    vms: Mapping[str, Sequence[VmView]],
    health: Mapping[str, Health],
    now: float,
) -> float | None:
    """When an attempt is due, or ends are to be forgotten."""
    due = [memory.next_try for memory in memories.values() if memory.outcome is None]
    for id_, memory in memories.items():
        current = current_of(vms.get(id_, ()))
        verdict = health.get(current.vm_id) if current else None
        if memory.ends and verdict is not None and verdict.verdict is Verdict.PASSING:
            due.append(verdict.since + FORGET_S)
    return min((moment for moment in due if moment > now), default=None)
