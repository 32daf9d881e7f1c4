"""What an agent does next, from what it was told and what it sees. Pure: looks in, actions and observations out.

Theory. An instance is a row of attempts, each a one-shot VM that is never brought back. At every look the agent compares
its assignments with the VMs of its host and gets at most one order an instance: run the next attempt, stop, delete. What
must be known between two looks (which ends were counted, when the next attempt is due) is a value, `Memory`, that goes in
and comes out; an agent that lost it goes on from the attempts it finds on the host.

Traps. The VM of the last attempt that ended stays until the next one is there: it is the evidence of a restarted agent, and
its log is what people ask for. An order is not remembered as done until its VM is seen, and its VM id follows from instance
and attempt alone, so an order given twice is one VM. What no assignment names is stopped, so an agent must not look before
it has fetched its assignments once. Of a VM that falls asleep, or wakes, nothing is told until it does either. One that
cannot be put to sleep runs on, and that is said; one whose memory cannot be had any more is replaced by the next attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from shellwego.core.apps import RestartMode
from shellwego.core.assignments import Assignment, Workload
from shellwego.core.ids import make_id
from shellwego.core.instances import MEMORY_LOST, Observed, Phase
from shellwego.core.vms import VmPhase, VmView

BACKOFF_S = (0.2, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Pause after the first end, the second, …; the last for all further ones. Three ends cost 1.2 s beside the boots."""
FORGET_S = 300.0
"""So long a healthy attempt makes earlier ends forgotten."""
WAKE_AGAIN_S = 2.0
"""After a resume that failed for a while."""
FETCH_AGAIN_S = (1.0, 3.0, 10.0)
"""Pauses after a memory that is elsewhere could not be had, as long as it might be later; then it is given up."""
DELAY_S = 2.0
"""Until what a VM needs before it begins is asked for again."""
UNASSIGNED_GRACE_S = 10.0
"""For VMs whose assignment, and with it the app's own grace, is gone."""
NO_OBSTACLES: Mapping[str, str] = MappingProxyType({})


class Verdict(StrEnum):
    WAITING = "waiting"
    """This attempt never passed its checks yet."""
    PASSING = "passing"
    FAILING = "failing"
    """It passed, and then failed as often in a row as the check allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the checks say of one VM."""

    vm_id: str
    verdict: Verdict = Verdict.WAITING
    reason: str = ""
    """Why it does not pass, in the check's words."""
    log_tail: tuple[str, ...] = ()
    """The last lines of a VM that does not pass, for whoever wants to know why."""
    since: float = 0.0
    """Monotonic time from which the verdict holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How an attempt ended."""

    reason: str
    reason_code: str = ""
    exit_code: int | None = None
    log_tail: tuple[str, ...] = ()
    asked: bool = False
    permanent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is remembered of one instance between two looks."""

    attempt: int = 0
    """The highest attempt that was seen, or refused by the engine."""
    counted: int = 0
    """The highest attempt whose end was weighed; no end is weighed twice."""
    ends: int = 0
    next_try: float = 0.0
    last: End | None = None
    outcome: Phase | None = None
    """`failed` or `stopped`: nothing more will be tried."""
    fetches: int = 0
    """How often the memory that it is to go on with could not be had."""
    left: bool = False
    """That memory will not be had any more."""
    stuck: End | None = None
    """Why the last order to sleep, or to wake, came to nothing; forgotten once it is as it should be."""


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


Action = RunVm | FetchVm | StopVm | DeleteVm | SuspendVm | ResumeVm


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
) -> Convergence:
    """Everything one look needs: weigh what ended, decide what to do, say what was seen.

    `health` is by VM id, `memories` and the observations by instance id; `now` is monotonic. `obstacles` are why no VM of an
    instance can begin yet: its volumes (`core.volume_convergence.obstacle`).
    """
    wanted = {assignment.instance_id: assignment for assignment in assignments}
    seen = _by_instance(vms)
    remembered = {
        id_: remember(memories.get(id_, Memory()), assignment, seen.get(id_, ()), health, now)
        for id_, assignment in wanted.items()
    }
    return Convergence(
        actions=diff(wanted.values(), seen, remembered, now, obstacles),
        memories=remembered,
        observed={
            id_: observe(assignment, seen.get(id_, ()), remembered[id_], health, obstacles.get(id_, ""))
            for id_, assignment in wanted.items()
            if not (assignment.present and _is_between(seen.get(id_, ())))
        },
        wake_at=_wake_at(remembered, seen, health, now),
    )


def vm_id(instance_id: str, attempt: int) -> str:
    """The id of an attempt's VM: no chance in it, so that an order can be repeated."""
    digest = hashlib.sha256(f"{instance_id}/{attempt}".encode()).digest()
    return make_id("vm", int.from_bytes(digest[10:16], "big"), digest[:10])


def remember(
    memory: Memory, assignment: Assignment, vms: Sequence[VmView], health: Mapping[str, Health], now: float
) -> Memory:
    """The memory after this look: which attempts are there, and how the last one went."""
    current = _current(vms)
    if current is None:
        return memory
    settled = VmPhase.ASLEEP if assignment.asleep else VmPhase.RUNNING
    stuck = None if current.phase in (settled, VmPhase.ENDED) else memory.stuck
    lost = memory.stuck
    memory = replace(memory, attempt=max(memory.attempt, current.attempt), stuck=stuck)
    if current.phase is not VmPhase.ENDED:
        verdict = health.get(current.vm_id)
        forgiven = verdict is not None and verdict.verdict is Verdict.PASSING and now - verdict.since >= FORGET_S
        return replace(memory, ends=0) if forgiven else memory
    if current.attempt <= memory.counted or not assignment.present:
        return memory
    end = _end_of(current)
    if lost is not None and lost.permanent:
        end = replace(end, reason=lost.reason, reason_code=MEMORY_LOST)
    return _weigh(replace(memory, counted=current.attempt), end, assignment.workload, now)


def refused(memory: Memory, order: RunVm, end: End, now: float) -> Memory:
    """The memory after the engine refused an order: an attempt that ended before it began."""
    tried = replace(memory, attempt=order.attempt, counted=order.attempt)
    return _weigh(tried, end, order.workload, now)


def hindered(memory: Memory, end: End, now: float) -> Memory:
    """The memory after the engine could not put a VM to sleep, or wake it."""
    return replace(memory, stuck=end, next_try=now + WAKE_AGAIN_S)


def unfetched(memory: Memory, end: End, now: float, *, temporary: bool) -> Memory:
    """The memory after that of another instance could not be had: tried again a few times where that may help, else given
    up; what then becomes of the instance is the control plane's to say."""
    if temporary and memory.fetches < len(FETCH_AGAIN_S):
        pause = FETCH_AGAIN_S[memory.fetches]
        return replace(memory, last=end, fetches=memory.fetches + 1, next_try=now + pause)
    return replace(memory, last=replace(end, reason_code=MEMORY_LOST), left=True)


def delayed(memory: Memory, end: End, now: float) -> Memory:
    """The memory after something that a VM needs before it begins could not be had: no attempt, and tried again."""
    return replace(memory, last=end, next_try=now + DELAY_S)


def diff(
    assignments: Iterable[Assignment],
    vms: Mapping[str, Sequence[VmView]],
    memories: Mapping[str, Memory],
    now: float,
    obstacles: Mapping[str, str] = NO_OBSTACLES,
) -> tuple[Action, ...]:
    """What to do so that the host holds what it should; `vms` are by instance."""
    wanted = {assignment.instance_id: assignment for assignment in assignments}
    actions: list[Action] = []
    for id_, assignment in wanted.items():
        own = vms.get(id_, ())
        if assignment.present:
            memory, obstacle = memories.get(id_, Memory()), obstacles.get(id_, "")
            actions += [
                each for each in _keep_running(assignment, own, memory, now) if not (_begins(each) and obstacle)
            ]
        else:
            actions += _remove(own, assignment.workload.stop_grace_s)
    for id_, own in vms.items():
        if id_ not in wanted:
            actions += _remove(own, UNASSIGNED_GRACE_S)
    return tuple(actions)


def _begins(action: Action) -> bool:
    return isinstance(action, RunVm)


def observe(
    assignment: Assignment, vms: Sequence[VmView], memory: Memory, health: Mapping[str, Health], obstacle: str = ""
) -> Observed:
    """What to report of an instance; epoch and sequence are the reporter's to add."""
    current = _current(vms)
    living = current is not None and current.phase is not VmPhase.ENDED
    if not assignment.present:
        return _observed(memory, current, Phase.STOPPING if living else Phase.STOPPED)
    if memory.outcome is not None:
        return _observed(memory, current, memory.outcome)
    if current is None or not living:
        return _to_begin(assignment, _observed(memory, current, Phase.STARTING), memory, obstacle)
    if current.phase is VmPhase.ASLEEP:
        asleep = _observed(memory, current, Phase.ASLEEP)
        return _stuck(replace(asleep, address="", reason="", reason_code="", log_tail=()), memory)
    if current.phase is not VmPhase.RUNNING:
        return _observed(memory, current, Phase.STARTING, detail=current.detail or current.phase.value)
    return _stuck(_checked(memory, current, health.get(current.vm_id, Health(vm_id=current.vm_id))), memory)


def _to_begin(assignment: Assignment, starting: Observed, memory: Memory, obstacle: str) -> Observed:
    """The observation of one without a VM that lives."""
    if obstacle:
        return replace(starting, detail="volumes", reason=obstacle, reason_code="")
    starting = replace(starting, detail="back-off" if memory.last else "")
    return _without_memory(starting, memory) if assignment.memory_of else starting


def _without_memory(observed: Observed, memory: Memory) -> Observed:
    """The observation of one that waits for the memory of another, or will not get it; or that had it and ended."""
    if memory.attempt:
        return replace(observed, reason_code=MEMORY_LOST)
    return observed if memory.left else replace(observed, detail="memory")


def _stuck(observed: Observed, memory: Memory) -> Observed:
    """The observation with why it neither sleeps nor runs as it should, where that is known."""
    if memory.stuck is None:
        return observed
    return replace(observed, reason=memory.stuck.reason, reason_code=memory.stuck.reason_code)


def _checked(memory: Memory, vm: VmView, health: Health) -> Observed:
    match health.verdict:
        case Verdict.PASSING:
            return replace(_observed(memory, vm, Phase.HEALTHY), reason="", reason_code="", log_tail=())
        case Verdict.FAILING:
            return _complaint(_observed(memory, vm, Phase.UNHEALTHY), health)
        case Verdict.WAITING:
            waiting = _observed(memory, vm, Phase.STARTING, detail="checks")
            return _complaint(waiting, health) if health.reason else waiting


def _complaint(observed: Observed, health: Health) -> Observed:
    """The observation in the words of the check that does not pass."""
    tail = health.log_tail or observed.log_tail
    return replace(observed, reason=health.reason, reason_code="check-failed", log_tail=tail)


def _observed(memory: Memory, vm: VmView | None, phase: Phase, *, detail: str = "") -> Observed:
    """Reason and exit code are those of the last end, until an attempt is healthy."""
    ended = vm is None or vm.phase is VmPhase.ENDED
    end = _end_of(vm) if vm is not None and ended else memory.last
    return Observed(
        phase=phase,
        attempt=memory.attempt,
        vm_id=vm.vm_id if vm else "",
        address="" if vm is None or ended else vm.address,
        reason=end.reason if end else "",
        reason_code=end.reason_code if end else "",
        exit_code=end.exit_code if end else None,
        ends=memory.ends,
        log_tail=end.log_tail if end else (),
        detail=detail,
    )


def _weigh(memory: Memory, end: End, workload: Workload, now: float) -> Memory:
    """What follows from an end: another attempt after a pause, or the outcome.

    A VM that was stopped by whoever stopped the host comes again; what is to run once does not, for half of it may be done.
    """
    ends = memory.ends if end.asked else memory.ends + 1
    own = workload.restart.backoff_s
    pause = BACKOFF_S[min(max(ends, 1), len(BACKOFF_S)) - 1] if own is None else own
    weighed = replace(memory, ends=ends, last=end, next_try=now + pause)
    clean, mode = end.exit_code == 0, workload.restart.mode
    if end.permanent:
        return replace(weighed, outcome=Phase.FAILED)
    if end.asked and mode is not RestartMode.NEVER:
        return weighed
    if clean and mode is not RestartMode.ALWAYS:
        return replace(weighed, outcome=Phase.STOPPED)
    if mode is RestartMode.NEVER or ends >= workload.restart.retries:
        return replace(weighed, outcome=Phase.FAILED)
    return weighed


def _keep_running(assignment: Assignment, vms: Sequence[VmView], memory: Memory, now: float) -> Iterator[Action]:
    current = _current(vms)
    yield from _remove([vm for vm in vms if vm is not current], assignment.workload.stop_grace_s)
    if memory.outcome is not None:
        return
    if current is not None and current.phase is not VmPhase.ENDED:
        yield from _sleep_or_wake(assignment, current, memory, now)
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


def _is_between(vms: Sequence[VmView]) -> bool:
    """It is falling asleep, or waking."""
    current = _current(vms)
    return current is not None and current.phase in (VmPhase.SUSPENDING, VmPhase.RESUMING)


def _remove(vms: Iterable[VmView], grace_s: float) -> Iterator[Action]:
    for vm in vms:
        if vm.phase is VmPhase.ENDED:
            yield DeleteVm(vm_id=vm.vm_id)
        elif vm.phase is not VmPhase.STOPPING:
            yield StopVm(vm_id=vm.vm_id, grace_s=grace_s)


def _current(vms: Sequence[VmView]) -> VmView | None:
    return max(vms, key=lambda vm: vm.attempt, default=None)


def _end_of(vm: VmView) -> End:
    return End(
        reason=vm.reason,
        reason_code=vm.reason_code,
        exit_code=vm.exit_code,
        log_tail=vm.log_tail,
        asked=vm.asked,
        permanent=vm.permanent,
    )


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
        current = _current(vms.get(id_, ()))
        verdict = health.get(current.vm_id) if current else None
        if memory.ends and verdict is not None and verdict.verdict is Verdict.PASSING:
            due.append(verdict.since + FORGET_S)
    return min((moment for moment in due if moment > now), default=None)
