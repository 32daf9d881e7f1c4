"""What an evicted instance waits for before it goes. Pure; `now` is an argument.

Theory. An evicted instance serves until enough of its app serve without it (`core.slots`). So it *moves* while another one
is on its way in its place, and then it is one of the few that may move at a time. It does not where nobody knows when, or
whether, it can go: its app is deployed, or comes back to another release than its own, at the rollout's pace; what came in
its place failed, has no node, or does not become healthy; or its app has too few elsewhere. Who does not move is told of,
and holds up no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shellwego.core.instances import SERVING, Desired, Instance, Phase
from shellwego.core.target import Target

SLOW_AFTER_S = 120.0
"""Who has not become healthy by then may never: he holds up nothing more, and is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictedFacts:
    """Whatever may come in the place of evicted instances."""

    relatives: Mapping[str, Sequence[Instance]] = field(default_factory=dict)
    """By app: all instances of the apps that have evicted ones, wherever they are."""
    deploying: frozenset[str] = frozenset()
    """Apps with a deployment that is not finished."""
    aims: Mapping[str, Target] = field(default_factory=dict)
    """By app: what it runs while it is not deployed. What was rolled back is not of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why an instance is still there."""

    instance: Instance
    reason: str
    moves: bool = False
    """It is on its way, by itself."""


def waits_for(facts: EvictedFacts, instance: Instance, now: float) -> Waiting:
    """What holds an evicted instance where it is."""
    if instance.desired is not Desired.SERVE:
        doing = "drains" if instance.desired is Desired.DRAIN else "stops"
        return Waiting(instance=instance, reason=doing, moves=True)
    relatives = facts.relatives.get(instance.app_id, ())
    deployed = instance.app_id in facts.deploying
    aim = facts.aims.get(instance.app_id)
    if not deployed and aim is not None and not aim.matches(instance):
        return replace(_outdated(instance, relatives, now), moves=False)
    other = successor(instance, relatives)
    if other is not None:
        return _for_other(instance, other, relatives, now)
    if deployed:
        return Waiting(instance=instance, reason="its app is being deployed")
    return _alone(instance, relatives, now)


def successor(instance: Instance, relatives: Iterable[Instance]) -> Instance | None:
    """What is meant to serve in the place of an evicted instance."""
    return next((i for i in relatives if _in_place(i, instance) and _comes(i)), None)


def _for_other(instance: Instance, other: Instance, relatives: Sequence[Instance], now: float) -> Waiting:
    """Of what another one comes for."""
    if other.phase is Phase.PENDING and other.placement_reason:
        return Waiting(instance=instance, reason=f"another one cannot be placed: {other.placement_reason}")
    if other.phase in SERVING and (why := next(_missing(instance, _of_its_process(instance, relatives), now), "")):
        return _needed(instance, why)
    if why := _slow(other, now):
        return Waiting(instance=instance, reason=f"another one came in its place, and {why}")
    if other.memory_of == instance.id:
        return Waiting(instance=instance, reason="its memory goes to another node", moves=True)
    return Waiting(instance=instance, reason=f"another one is {other.phase.value} in its place", moves=True)


def _outdated(instance: Instance, relatives: Sequence[Instance], now: float) -> Waiting:
    """Of what is of another release than its app is to run: it goes as that one comes."""
    other = next((i for i in relatives if _for_its_slot(i, instance) and _comes(i)), None)
    if other is not None:
        return _for_other(instance, other, relatives, now)
    if why := next(_missing(instance, relatives, now), ""):
        return _needed(instance, why)
    return Waiting(instance=instance, reason="another release comes in its place")


def _alone(instance: Instance, relatives: Sequence[Instance], now: float) -> Waiting:
    """Of what no other one comes for yet."""
    failed = _failure(instance, relatives)
    if failed is not None:
        return Waiting(instance=instance, reason=f"what came in its place failed: {_end(failed)}")
    if why := next(_held_up(instance, _of_its_process(instance, relatives), now), ""):
        return _needed(instance, why)
    return Waiting(instance=instance, reason="moves now", moves=True)


def _needed(instance: Instance, why: str) -> Waiting:
    return Waiting(instance=instance, reason=f"serves until another one of its app does: {why}")


def _comes(instance: Instance) -> bool:
    return instance.live and instance.desired is Desired.SERVE and not instance.evicted


def _failure(instance: Instance, relatives: Iterable[Instance]) -> Instance | None:
    """The last one that was to serve in its place and failed."""
    later = [i for i in relatives if _in_place(i, instance) and _failed_after(i, instance)]
    return max(later, key=lambda i: (i.phase_since, i.id), default=None)


def _failed_after(other: Instance, instance: Instance) -> bool:
    """It began after the other one, and failed."""
    failed = other.phase is Phase.FAILED and other.desired is Desired.SERVE
    return failed and other.created_at >= instance.created_at


def _missing(instance: Instance, relatives: Iterable[Instance], now: float) -> Iterator[str]:
    """Why there are too few of these without it. Nothing: they come."""
    beside = _beside(instance, relatives)
    coming = {(i.process, i.slot) for i in beside if _comes(i)}
    yield from _held_up(instance, beside, now)
    yield from (_end(i) for i in beside if _failed_after(i, instance) and (i.process, i.slot) not in coming)


def _held_up(instance: Instance, relatives: Iterable[Instance], now: float) -> Iterator[str]:
    """Why those that come beside it do not serve. They leave no room for one in its place."""
    coming = [i for i in _beside(instance, relatives) if _comes(i)]
    yield from (i.placement_reason for i in coming if i.phase is Phase.PENDING and i.placement_reason)
    yield from (f"{i.process}.{i.slot} {why}" for i in coming if (why := _slow(i, now)))


def _beside(instance: Instance, relatives: Iterable[Instance]) -> list[Instance]:
    return [i for i in relatives if i.owner is instance.owner and i.id != instance.id]


def _of_its_process(instance: Instance, relatives: Iterable[Instance]) -> list[Instance]:
    return [i for i in relatives if i.process == instance.process]


def _slow(other: Instance, now: float) -> str:
    """How somebody does not become healthy, where that took too long already; empty: it may yet."""
    if other.phase in SERVING or other.phase is Phase.PENDING or now - other.phase_since < SLOW_AFTER_S:
        return ""
    return f"does not become healthy: {other.observed.reason or f'it is {other.phase.value}'}"


def _end(failed: Instance) -> str:
    return failed.observed.reason or "it ended"


def _in_place(other: Instance, instance: Instance) -> bool:
    """Of the same content, for the same slot."""
    content = (instance.content_hash, instance.generation)
    return _for_its_slot(other, instance) and content == (other.content_hash, other.generation)


def _for_its_slot(other: Instance, instance: Instance) -> bool:
    place = (instance.owner, instance.process, instance.slot)
    return other.id != instance.id and place == (other.owner, other.process, other.slot)
