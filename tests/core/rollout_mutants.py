"""Planners with one planted fault each: what the history rules must catch.

A mutant is a change of source text in one module of the planner. The planner's modules are loaded anew from their sources
under other names, so that the mutated one is seen by those that import it and the real ones are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from tests.core.rollout_parts import Planner

_PACKAGE = "shellwego.core"
MODULES = ("target", "canary", "routes", "slots", "progress", "release_command", "course", "rollout")
"""The planner, in the order of import."""


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    module: str
    old: str
    new: str
    hint: int = 0
    """The seed to begin with, where few histories show the fault."""


MUTANTS = (
    # those of the first prototype
    Mutant("no floor", "slots", "if spare <= 0 or (", "if ("),
    Mutant("surge is fixed", "slots", "facts.strategy.surge(facts.wanted)", "facts.strategy.surge(1)"),
    Mutant("a cutover never yields", "slots", "held <= facts.wanted", "held > 0"),
    Mutant("no cutover", "slots", "(facts.strategy.cutover or canary)", "canary"),
    Mutant("starting counts as serving", "slots", "sum(instance.phase in SERVING for", "sum(instance.live for"),
    Mutant("no ceiling", "slots", "[: max(0, room)]", "[: max(0, missing)]"),
    Mutant(
        "surplus drops what serves first",
        "slots",
        "key=lambda i: (i.phase in SERVING, -i.slot",
        "key=lambda i: (i.phase not in SERVING, -i.slot",
    ),
    Mutant("lost instances stay", "rollout", "i.node_id in facts.dead_nodes", "i.node_id in ()"),
    # ours
    Mutant("slots are given twice", "slots", "if slot not in taken and slot not in first)", "if True)"),
    Mutant("surplus is kept", "slots", "[: max(0, beyond)]", "[: max(0, beyond - 1)]"),
    Mutant("what does not serve is kept", "slots", "if instance.phase in SERVING and not done:", "if not done:"),
    Mutant(
        "stopped without draining",
        "slots",
        "if port and instance.phase in DRAINABLE:",
        "if port and not instance.live:",
    ),
    Mutant("a doze is never over", "rollout", "or instance.id in leaving", "or instance.desired is Desired.SERVE"),
    Mutant("sleep is given to what leaves", "rollout", " or instance.id in leaving", ""),
    Mutant("edges are not waited for", "routes", "if behind and now < give_up:", "if behind and now < give_up - 1e9:"),
    Mutant("a silent edge holds for ever", "routes", "if behind and now < give_up:", "if behind:"),
    Mutant("silent edges are not named", "routes", "silent=tuple(sorted(edge.name for edge in behind))", "silent=()"),
    Mutant("sessions are cut at once", "routes", "if sessions and now < cut:", "if sessions and now < cut - 1e9:"),
    Mutant("sessions hold for ever", "routes", "if sessions and now < cut:", "if sessions:"),
    Mutant("cut sessions are not counted", "routes", "cut=sessions,", "cut=0,"),
    Mutant(
        "no pause after a failure",
        "slots",
        "return max(failures) + REPLACE_BACKOFF_S",
        "return now + 0 * REPLACE_BACKOFF_S",
    ),
    Mutant("a restart replaces nothing", "target", "and instance.generation == self.generation", ""),
    Mutant(
        "a rollback replaces what is right",
        "target",
        "instance.content_hash == self.release.content_hash",
        "instance.release_id == self.release.id",
    ),
    Mutant("a vanishing process goes first", "rollout", "keep_serving=kept", "keep_serving=False"),
    Mutant("waiting for an image replaces", "course", "hold=course.running is None", "hold=False"),
    Mutant("a failed instance fails nothing", "course", "if failed is not None and not mending:", "if failed and now < 0:"),
    Mutant("no deadline", "course", "if now >= running.deadline and", "if now < 0 and"),
    Mutant(
        "the deadline hits what is ready",
        "course",
        " and not all_ready(facts, course):\n        return _turn_back",
        ":\n        return _turn_back",
    ),
    Mutant("older deployments go on", "course", "moves=(*_supersede(older), *begun", "moves=(*begun"),
    Mutant("rolled back though not wished", "course", "failed.rollback_on_failure and back", "back"),
    Mutant("done before the old ones are told", "rollout", "and _only_target_left(seen, course)", ""),
    Mutant("done before all are ready", "rollout", "all_ready(replace(facts, instances=tuple(seen)), course) and ", ""),
    Mutant(
        "what succeeded is not remembered",
        "rollout",
        "stable_release_id=running.release_id",
        "stable_release_id=app.stable_release_id",
    ),
    # nodes that are emptied
    Mutant("a move takes what serves", "slots", "serving[: max(0, ready - needed)]", "serving"),
    Mutant("a move is never over", "slots", "serving[: max(0, ready - needed)]", "serving[:0]"),
    Mutant("what is forced out stays", "slots", "return [*forced, *idle,", "return [*idle,"),
    Mutant("what does not serve waits to be moved", "slots", "return [*forced, *idle,", "return [*forced,"),
    Mutant("an evicted one is as good as another", "slots", "matches(i) and not i.evicted", "matches(i)"),
    Mutant("no surge for a move", "slots", "moves = min(moving, ROLLING.surge(facts.wanted))", "moves = 0"),
    Mutant("a move has no ceiling", "slots", " - len(stale) - moving\n", " - len(stale)\n"),
    Mutant("a move takes a canary's part", "slots", "max(facts.part, facts.wanted - _s", "max(0, facts.wanted - _s", 580),
    Mutant("a move takes the new of a canary", "slots", "max(facts.part, facts.wanted - _s", "max(facts.part, 0 * _s", 2362),
    # canaries
    Mutant("a canary lets the old ones go", "slots", "(facts.strategy.cutover or canary)", "facts.strategy.cutover"),
    Mutant("a canary is done when it is ready", "slots", " and not canary\n", "\n"),
    Mutant("a canary is everybody", "slots", "max(facts.part, facts.wanted - len(stale))", "facts.wanted"),
    Mutant("nobody fills in for the old ones", "slots", "max(facts.part, facts.wanted - len(stale))", "facts.part"),
    Mutant("a step has no pause", "canary", "if now < since + plan.pause_s:", "if now < since:"),
    Mutant("a pause is never over", "canary", "if now < since + plan.pause_s:", "if True:"),
    Mutant("a pause outlives a break", "canary", "return CanaryStep(number=step.number)\n", "return step\n"),
    Mutant("a step needs nothing ready", "course", "census(slot).ready >= slot.part", "slot.part >= 0"),
    Mutant("a step does not wait for the edges", "course", "return served and all(", "return all("),
    Mutant("the end of a pause is slept through", "course", "deadlines=(*course.deadlines, *over),", ""),
    Mutant("a sick canary goes on", "course", "if course.weight < 100 else None\n", "if now < 0 else None\n"),
    Mutant(
        "a canary with nothing beside it waits",
        "canary",
        "if any(_is_beside(i, target, wanted) for i in instances) else 100",
        "",
    ),
    Mutant("a canary succeeds half way", "course", "return course.weight == 100 and all(", "return all("),
    # a deployment's own numbers
    Mutant("its own numbers are passed over", "course", ".paced(running.max_unavailable, running.surge)", ""),
    # release commands
    Mutant("a command is not waited for", "release_command", "return ended and run is not None and", "return True or"),
    Mutant("a command that failed is waited for", "release_command", "        return _ended(run)\n", "        pass\n"),
    Mutant("a command is run again", "release_command", "or run_of(deployment, known) or", "or"),
    Mutant(
        "two commands at a time",
        "release_command",
        " or _others(deployment, known):\n        return None",
        ":\n        return None",
    ),
    Mutant("a command outlives its deployment", "rollout", "*_over(facts, course), ", ""),
    Mutant("a command has no deadline", "release_command", "if now < deployment.deadline:", "if True:"),
    Mutant("a command that was stopped is waited for", "release_command", " and _is_over(run):", " and not run.live:"),
    Mutant("a drain is not awaited", "rollout", "times.append(state.until)", "times.append(None)"),
)  # fmt: skip


@contextmanager
def planner_of(mutant: Mutant | None) -> Iterator[Planner]:
    """The planner with the mutant's fault (None: an unchanged copy), as long as the context lasts.

    Raises:
        ValueError: the text to be changed is not there exactly once, so the mutant no longer fits the source.
    """
    prefix = "mutant_" + "".join(c if c.isalnum() else "_" for c in (mutant.name if mutant else "none"))
    names = [prefix, *(f"{prefix}.{name}" for name in MODULES)]
    sys.modules[prefix] = ModuleType(prefix)
    try:
        for name in MODULES:
            _load(prefix, name, _mutated(name, mutant))
        yield sys.modules[f"{prefix}.rollout"].plan_rollout
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _mutated(name: str, mutant: Mutant | None) -> str:
    spec = find_spec(f"{_PACKAGE}.{name}")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    if mutant is None or mutant.module != name:
        return source
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: “{mutant.old}” is {source.count(mutant.old)} times in {name}")
    return source.replace(mutant.old, mutant.new)


def _load(prefix: str, name: str, source: str) -> None:
    for other in MODULES:
        source = source.replace(f"from {_PACKAGE}.{other} import", f"from {prefix}.{other} import")
    source = source.replace(f"from {_PACKAGE} import", f"from {prefix} import")
    module = ModuleType(f"{prefix}.{name}")
    sys.modules[module.__name__] = module
    setattr(sys.modules[prefix], name, module)
    exec(compile(source, f"<{prefix}.{name}>", "exec"), module.__dict__)  # noqa: S102 - our own source, with a fault in it
