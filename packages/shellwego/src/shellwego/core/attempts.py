"""The attempts of one instance as its agent remembers them, and what follows from how they end. Pure.

Theory. An instance is a row of attempts, each a one-shot VM that is never brought back. `Memory` is what must be known of
them between two looks at the host; each function gives the memory after something happened. Every end is weighed once: it
brings another attempt after a pause, or the outcome.

What never began because something that it needs did not answer, such as a server with its image, is no end of its workload:
it is put off, counts for nothing, and is tried again until it begins, or is not wanted any more.

Traps. An end is weighed by the number of its attempt, not by its VM, which is seen ended at many looks. A memory that is
lost is made again from the attempts that are found, so nothing may hang on it but pauses and counts. What is said of an
order that came to nothing (`stuck`) is forgotten as soon as the VM is as it should be; where it ended instead, and its
memory was lost, it is the reason of that end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shellwego.core.apps import RestartMode
from shellwego.core.assignments import Assignment, Workload
from shellwego.core.health import Health, Verdict
from shellwego.core.instances import MEMORY_LOST, Phase
from shellwego.core.logtails import log_tail
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
PUT_OFF_S = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0)
"""Pause after the first VM in a row that did not begin because something did not answer, the second, …"""
PUT_OFF_MOST = 20
"""So often in a row, which takes nine minutes: then it may be this host's fault, and another is to be tried."""
_NOT_BEGUN = (VmPhase.PREPARING, VmPhase.STARTING)


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
    put_off: int = 0
    """How many attempts in a row did not begin because something did not answer."""
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


def current_of(vms: Sequence[VmView]) -> VmView | None:
    """The VM of the newest attempt of an instance."""
    return max(vms, key=lambda vm: vm.attempt, default=None)


def end_of(vm: VmView) -> End:
    """How a VM ended."""
    return End(
        reason=vm.reason,
        reason_code=vm.reason_code,
        exit_code=vm.exit_code,
        log_tail=log_tail(vm.log_tail),
        asked=vm.asked,
        permanent=vm.permanent,
    )


def remember(
    memory: Memory, assignment: Assignment, vms: Sequence[VmView], health: Mapping[str, Health], now: float
) -> Memory:
    """The memory after this look: which attempts are there, and how the last one went."""
    current = current_of(vms)
    if current is None:
        return memory
    settled = VmPhase.ASLEEP if assignment.asleep else VmPhase.RUNNING
    stuck = None if current.phase in (settled, VmPhase.ENDED) else memory.stuck
    lost = memory.stuck
    memory = replace(memory, attempt=max(memory.attempt, current.attempt), stuck=stuck)
    if current.phase is not VmPhase.ENDED:
        verdict = health.get(current.vm_id)
        memory = memory if current.phase in _NOT_BEGUN else replace(memory, put_off=0)
        forgiven = verdict is not None and verdict.verdict is Verdict.PASSING and now - verdict.since >= FORGET_S
        return replace(memory, ends=0) if forgiven else memory
    if current.attempt <= memory.counted or not assignment.present:
        return memory
    end, memory = end_of(current), replace(memory, counted=current.attempt)
    if current.unavailable and memory.put_off < PUT_OFF_MOST:
        pause = PUT_OFF_S[min(memory.put_off, len(PUT_OFF_S) - 1)]
        return replace(memory, last=end, put_off=memory.put_off + 1, next_try=now + pause)
    if lost is not None and lost.permanent:
        end = replace(end, reason=lost.reason, reason_code=MEMORY_LOST)
    return _weigh(memory, end, assignment.workload, now)


def refused(memory: Memory, attempt: int, workload: Workload, end: End, now: float) -> Memory:
    """The memory after the engine refused to run an attempt: it ended before it began."""
    return _weigh(replace(memory, attempt=attempt, counted=attempt), end, workload, now)


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
