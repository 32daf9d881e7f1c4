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

from tests.core.rollout_history import Planner

_PACKAGE = "shellwego.core"
MODULES = ("routes", "slots", "progress", "course", "rollout")
"""The planner, in the order of import."""


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    module: str
    old: str
    new: str


MUTANTS = (
    # those of the first prototype
    Mutant("no floor", "slots", "if spare <= 0 or (", "if ("),
    Mutant("surge is fixed", "slots", "facts.strategy.surge(facts.wanted)", "facts.strategy.surge(1)"),
    Mutant("a cutover never yields", "slots", "held <= facts.wanted", "held > 0"),
    Mutant("no cutover", "slots", "(facts.strategy.cutover and held <= facts.wanted)", "False"),
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
    Mutant("slots are given twice", "slots", "if slot not in taken:", "if True:"),
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
    Mutant("a restart replaces nothing", "slots", "and instance.generation == self.generation", ""),
    Mutant(
        "a rollback replaces what is right",
        "slots",
        "instance.content_hash == self.release.content_hash",
        "instance.release_id == self.release.id",
    ),
    Mutant("a vanishing process goes first", "rollout", "keep_serving=kept", "keep_serving=False"),
    Mutant("waiting for an image replaces", "course", "hold=course.running is None", "hold=False"),
    Mutant("a failed instance fails nothing", "course", "if failed is not None and not mending:", "if failed and now < 0:"),
    Mutant("no deadline", "course", "if now >= _deadline(running) and", "if now < 0 and"),
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
    Mutant("a drain is not awaited", "rollout", "times.append(state.until)", "times.append(None)"),
)  # fmt: skip


@contextmanager
def planner_of(mutant: Mutant | None) -> Iterator[Planner]:
    """The planner with the mutant's fault (None: an unchanged copy), as long as the context lasts.

    Raises:
        ValueError: the text to be changed is not there exactly once, so the mutant no longer fits the source.
    """
    prefix = "mutant_" + "".join(c if c.isalnum() else "_" for c in (mutant.name if mutant else "none"))
    names = [f"{prefix}.{name}" for name in MODULES]
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
    module = ModuleType(f"{prefix}.{name}")
    sys.modules[module.__name__] = module
    exec(compile(source, f"<{prefix}.{name}>", "exec"), module.__dict__)  # noqa: S102 - our own source, with a fault in it
