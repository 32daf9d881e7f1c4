"""What an agent reports of an instance, from its VMs, what is remembered of its attempts, and its checks. Pure.

Trap. Of a VM that falls asleep, or wakes, nothing is told until it does either (`is_between`): whoever reads a report would
take it for one that starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shellwego.core.assignments import Assignment
from shellwego.core.attempts import Memory, current_of, end_of
from shellwego.core.health import Health, Verdict
from shellwego.core.instances import MEMORY_LOST, Observed, Phase
from shellwego.core.vms import VmPhase, VmView


def is_between(vms: Sequence[VmView]) -> bool:
    """It is falling asleep, or waking."""
    current = current_of(vms)
    return current is not None and current.phase in (VmPhase.SUSPENDING, VmPhase.RESUMING)


def observe(
    assignment: Assignment, vms: Sequence[VmView], memory: Memory, health: Mapping[str, Health], obstacle: str = ""
) -> Observed:
    """What to report of an instance; epoch and sequence are the reporter's to add."""
    current = current_of(vms)
    living = current is not None and current.phase is not VmPhase.ENDED
    if not assignment.present:
        return _observed(memory, current, Phase.STOPPING if living else Phase.STOPPED)
    if memory.outcome is not None:
        return _observed(memory, current, memory.outcome)
    if current is None or not living:
        return _to_begin(assignment, _observed(memory, current, Phase.STARTING), memory, obstacle)
    if current.phase is VmPhase.ASLEEP:
        asleep = _observed(memory, current, Phase.ASLEEP)
        return _stuck(replace(asleep, address="", private_address="", reason="", reason_code="", log_tail=()), memory)
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
    end = end_of(vm) if vm is not None and ended else memory.last
    return Observed(
        phase=phase,
        attempt=memory.attempt,
        vm_id=vm.vm_id if vm else "",
        address="" if vm is None or ended else vm.address,
        private_address="" if vm is None or ended else vm.private_address,
        reason=end.reason if end else "",
        reason_code=end.reason_code if end else "",
        exit_code=end.exit_code if end else None,
        ends=memory.ends,
        log_tail=end.log_tail if end else (),
        detail=detail,
    )
