"""Copies of the source with one guard taken out each: the simulation must notice every one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import shellwego

EVERY = 33
"""So four stories of each trunk, which part at its first fork: many trunks find more than many ends of one."""
_SOURCE = Path(shellwego.__file__).parent
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old` stands once in the file."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "lease fence",
        "control/loops/lease.py",
        "if lease is None or lease.holder != self.holder or lease.until <= unit.now():",
        "if lease is None:",
    ),
    Mutation(
        "lease claim",
        "control/loops/lease.py",
        "elif stored.holder == holder or stored.until <= now:",
        "elif stored:",
    ),
    Mutation("report epoch", "control/nodes.py", "if report.epoch < node.epoch:", "if report.epoch < 0:"),
    Mutation(
        "report sequence",
        "control/nodes.py",
        "if (observed.epoch, observed.sequence) <= (before.epoch, before.sequence):",
        "if observed.sequence < 0:",
    ),
    Mutation("epoch of the dead", "core/liveness.py", "epoch=node.epoch + 1", "epoch=node.epoch"),
    Mutation(
        "version of the judged",
        "control/loops/nodes.py",
        "(node.last_heard_at, node.health) != (seen.last_heard_at, seen.health)",
        "node.id != seen.id",
    ),
    Mutation(
        "outbox row",
        "control/changes.py",
        'announce(unit, app, f"app.deployment.{kind}", data, severity=severity)',
        "str(kind)",
    ),
    Mutation(
        "drain wait",
        "core/routes.py",
        "sessions = sum(edge.open_sessions.get(instance.id, 0) for edge in confirmed)",
        "sessions = 0",
    ),
    Mutation(
        "version of the routes",
        "core/routes.py",
        "return edge.lease_until > now and edge.applied_version >= version",
        "return edge.lease_until > now",
    ),
    Mutation(
        "adoption",
        "agent/reconciler.py",
        "step = converge(assignments, views,",
        "step = converge(assignments, [view for view in views if view.instance_id in self._memories],",
    ),
    Mutation("health of the adopted", "agent/checks.py", "return not self._adopted or all(", "return True or all("),
    Mutation(
        "memory of the sequence",
        "agent/state.py",
        "self._sequence = self._stored.sequence_limit\n",
        "self._sequence = 0\n",
    ),
    Mutation(
        "idempotency",
        "control/authorization.py",
        "known = recall(unit.tx, key)\n            if known is not None:\n                self.decided = True",
        "known = None\n            if known is not None:\n                self.decided = True",
    ),
    Mutation(
        "assignments without a hint",
        "agent/daemon.py",
        "self._waits.fetch.wait(LOOK_AGAIN_S)",
        "self._waits.fetch.wait()",
    ),
    Mutation(
        "plans without a hint",
        "control/loops/rollout.py",
        "            tasks.create_task(self._sweep_busy())\n"
        "            tasks.create_task(sweep_changed(control, schedule))\n",
        "",
    ),
    Mutation("routes without a hint", "edge/daemon.py", "wait(self._settings.poll_s)", "wait()"),
    Mutation(
        "end before forgetting",
        "core/rollout.py",
        "over = not any(i.live for i in after(facts.instances, step.changes, now))",
        "over = True",
    ),
    Mutation(
        "calling off before placing",
        "control/loops/rollout.py",
        "        if plan.changes:\n            apply(unit, app, plan.changes)\n"
        "        placed = store_placements(unit, app, placer)",
        "        placed = store_placements(unit, app, placer)\n"
        "        if plan.changes:\n            apply(unit, app, plan.changes)",
    ),
    Mutation(
        "audit of refusals",
        "control/authorization.py",
        "            await self._record_refusal(refused.resource, refused.scope)\n",
        "",
    ),
    Mutation(
        "permission",
        "control/authorization.py",
        "if not self.allows(found.scope):\n            raise",
        "if not found:\n            raise",
    ),
    Mutation(
        "draining before stopping",
        "core/slots.py",
        "    if port and instance.phase in DRAINABLE:",
        "    if not port and instance.phase in DRAINABLE:",
    ),
    Mutation(
        "floor of a drain",
        "core/slots.py",
        "return [*forced, *idle, *serving[: max(0, ready - needed)]]",
        "return [*forced, *idle, *serving]",
    ),
    Mutation(
        "leaving of who has to move",
        "core/slots.py",
        "return [*forced, *idle, *serving[: max(0, ready - needed)]]",
        "return [*forced, *idle]",
    ),
    Mutation(
        "cordon in placement",
        "core/placement.py",
        "    if node.scheduling is not Scheduling.OPEN:\n        return Objection(",
        "    if not node.scheduling:\n        return Objection(",
    ),
    Mutation(
        "emptied before drained",
        "core/drain.py",
        "return not self.waiting",
        "return not self.evict",
    ),
    Mutation(
        "turn of the queued",
        "control/loops/drains.py",
        "if await control.read(rebalance.is_due):",
        "if control is None:",
    ),
    Mutation(
        "applied before told",
        "edge/ingress.py",
        "if not await self._execute(present, plan(present, wanted)):",
        "if False:",
    ),
    Mutation(
        "holder of a volume",
        "control/holds.py",
        "if holder is not None and holder.live:",
        "if holder is None and instance is None:",
    ),
    Mutation(
        "home of a volume",
        "core/placement.py",
        "if request.home is not None and request.home.node_id != node.id:",
        "if request.home is not None and not node.id:",
    ),
    Mutation(
        "end before letting go of a volume",
        "control/nodes.py",
        "    if not stored.live:\n        _make_room(unit, stored)",
        "    if stored.phase is Phase.STOPPING or not stored.live:\n        _make_room(unit, stored)",
    ),
    Mutation(
        "restore of what is held", "control/volumes.py", "    if volume.instance_id:\n", "    if not volume.id:\n"
    ),
    Mutation(
        "lease before a promotion",
        "core/promotion.py",
        "    elif not home.leases_over:",
        "    elif not home.name:",
    ),
    Mutation(
        "last round before the switch of a move",
        "core/moves.py",
        "    if move.stage is S.LAST and facts.round_held >= facts.round:",
        "    if move.stage is S.LAST:",
    ),
    Mutation("gap of priorities", "core/preemption.py", "GAP = 10\n", "GAP = 0\n"),
    Mutation(
        "victim with a volume",
        "control/preemption.py",
        "for volume in tx.volumes.select() if volume.instance_id",
        "for volume in tx.volumes.select() if not volume.id",
    ),
)


def misfits() -> list[str]:
    """Those that do not fit the source any more."""
    return [each.name for each in MUTATIONS if (_SOURCE / each.file).read_text().count(each.old) != 1]


def run_mutations(seeds: int, only: str, jobs: int) -> int:
    """Play each of them until a seed fails; returns the exit code."""
    chosen = [mutation for mutation in MUTATIONS if not only or mutation.name in only.split(",")]
    missed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for mutation, verdict in zip(chosen, pool.map(lambda each: _caught(each, seeds), chosen), strict=True):
            print(f"{mutation.name:32} {verdict or 'NOT CAUGHT'}", flush=True)
            missed += verdict is None
    print(f"sim: {missed} of {len(chosen)} mutations were not caught")
    return 1 if missed else 0


def _caught(mutation: Mutation, seeds: int) -> str | None:
    """What a copy of the source with this fault is caught by.

    Raises:
        ValueError: the mutation does not fit the source any more.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "shellwego"
        shutil.copytree(_SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            raise ValueError(f"{mutation.name}: what it changes is {text.count(mutation.old)} times in {mutation.file}")
        file.write_text(text.replace(mutation.old, mutation.new))
        environment = {**os.environ, "PYTHONPATH": f"{scratch}:{_ROOT}", "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "tests.sim", "--seeds", str(seeds), "--every", str(EVERY)]
        command += ["--shrink", "0", "--few", "--jobs", "1"]
        done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return None
        said = [line.removeprefix("sim: ") for line in done.stderr.splitlines() if line.startswith("sim: ")]
        if not said or not said[0].startswith("seed"):
            raise ValueError(f"{mutation.name}: {done.stderr[-2000:]}")
        return f"{said[1].removeprefix('found ')}, {said[0][:120]}"
