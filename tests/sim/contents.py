"""What volumes hold, and what must be in them: all that a VM wrote, wherever the volume went since.

A VM writes when it begins, at each request, and last of all when it is stopped; so the end of what an app wrote is in no
round that was sent before it had ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from shellwego.core.moves import MoveStage
from shellwego.core.nodes import NodeHealth
from shellwego.core.replicas import REPLICA_MOVES, Replica, marked, marker
from shellwego.core.volumes import Volume
from shellwego.ports.store import Transaction

if TYPE_CHECKING:
    from tests.sim.hosts import NodeHost
    from tests.sim.watch import Write
    from tests.sim.world import World

Found = Iterator[tuple[str, str]]


class Contents:
    """What each volume held, in this order."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._held: dict[str, list[str]] = {}
        self._asked: dict[str, int] = {}
        """By marker: how often the volume had changed when that round was asked for. Their times may be the same."""
        self._writes = 0
        self._outcast: set[tuple[str, str]] = set()
        """Volumes that went back where they came from, each with the host whose node was removed before it had told of it.
        What may run there, until it hears so, is no matter of the volume's: whoever removed it said that it is gone."""

    def begun(self, node: NodeHost, vm_id: str, volume_id: str) -> Found:
        """Whoever begins finds what was written last."""
        if (volume_id, node.name) in self._outcast:
            return
        if node.engine.disks.kept[volume_id].holds != self._last(volume_id):
            yield "lost-data", f"{vm_id} begins on {node.name}, and {volume_id} is not as it was left"

    def write(self, node: NodeHost, vm_id: str, volume_id: str) -> Found:
        """A VM writes: where the volume lives, and nowhere else."""
        if (volume_id, node.name) in self._outcast:
            return
        row = self._world.rows("volumes").get(volume_id)
        if row is not None and not row.lost and row.node_id != node.node_id:
            yield "two-owners", f"{vm_id} writes to {volume_id} on {node.name}, and it lives on {row.node_id}"
            return
        self._writes += 1
        kept = node.engine.disks.kept[volume_id]
        kept.holds += f"{self._writes};"
        self._note(volume_id, kept.holds)

    def restored(self, node: NodeHost, volume_id: str) -> None:
        """It was put back to what it was."""
        row = self._world.rows("volumes").get(volume_id)
        if row is not None and row.node_id == node.node_id:
            self._note(volume_id, node.engine.disks.kept[volume_id].holds)

    def replica(self, tx: Transaction, write: Write) -> Found:
        """A copy goes through declared states, and never forgets a round that was asked for."""
        old, new = write.old, write.new
        if isinstance(new, Replica):
            self._asked.setdefault(marker(new.id, new.round), self._changes(new.volume_id))
        if old is None or new is None:
            return
        if new.state is not old.state and new.state not in REPLICA_MOVES[old.state]:
            yield "declared-transitions", f"the copy {new.id}: {old.state} to {new.state}"
        if new.round < old.round or new.purpose is not old.purpose or old.dropping > new.dropping:
            yield "declared-transitions", f"the copy {new.id} went back: {old} to {new}"

    def moved(self, tx: Transaction, old: Volume, new: Volume) -> Found:
        """A volume lives on another node than before: by a move, or since its node is lost."""
        move, host = new.move, self._host(new.node_id)
        self._outcast -= {(new.id, host.name)} if host else set()
        if new.promotion is not None and new.promotion != old.promotion:
            yield from self._promoted(tx, old, new)
        elif move is not None and old.move is not None and move.stage is not old.move.stage is MoveStage.LAST:
            yield from self._switched(tx, old, new)
        elif move is not None and old.move is not None and move.stage is not old.move.stage is MoveStage.ARRIVING:
            yield from self._given_back(tx, old, new)
        else:
            yield "moved-volume", f"{new.name} lives on {new.node_id}, and its data is on {old.node_id}"

    def _switched(self, tx: Transaction, old: Volume, new: Volume) -> Found:
        """All that was written is there, and what is left behind is the copy now."""
        assert new.move is not None
        left = tx.replicas.get(new.move.replica_id)
        if new.node_id != new.move.target_node_id or left is None or left.node_id != old.node_id or new.instance_id:
            yield "moved-volume", f"{new.name} goes from {old.node_id} to {new.node_id}: {new.move}, {left}"
        yield from self._unused(new)
        if self._there(new) != self._last(new.id):
            yield "lost-data", f"{new.name} moves to {new.node_id}, and not all of it is there"
        if left is not None:
            self._asked[marker(left.id, left.round)] = self._changes(new.id)

    def _given_back(self, tx: Transaction, old: Volume, new: Volume) -> Found:
        """Its new node was removed before it told of it: it is where it was, as it was when it left, and nobody has it."""
        assert new.move is not None
        before = self._host(old.node_id)
        self._outcast |= {(new.id, before.name)} if before else set()
        copy = tx.replicas.get(new.move.replica_id)
        at_source = new.node_id == new.move.source_node_id and new.move.stage is MoveStage.FAILED
        if not at_source or tx.nodes.get(old.node_id) is not None or copy is not None or new.instance_id:
            yield "moved-volume", f"{new.name} goes back from {old.node_id} to {new.node_id}: {new.move}, {copy}"
        yield from self._unused(new)
        host = self._host(new.node_id)
        kept = host.engine.disks.kept.get(new.id) if host else None
        held = kept.snapshots.get(new.restore_snapshot_id) if kept else None
        left = ["", *self._held.get(new.id, [])][self._asked.get(new.restore_snapshot_id, 0)]
        if held is None or held != left:
            yield "lost-data", f"{new.name} goes back to {new.node_id}, and is not there as it was when it left"
        self._note(new.id, held or "")

    def _promoted(self, tx: Transaction, old: Volume, new: Volume) -> Found:
        """Nothing has it where it was, and no more is lost than what was written since its copy's round was asked for."""
        home = tx.nodes.get(old.node_id)
        if home is None or home.health is not NodeHealth.DOWN or new.epoch <= old.epoch:
            yield "moved-volume", f"{new.name} is promoted, and its node {old.node_id} is there"
        yield from self._unused(new)
        yield from self._fenced(old)
        host = self._host(new.node_id)
        kept = host.engine.disks.kept.get(new.id) if host else None
        whole = _whole(new.restore_snapshot_id, kept.snapshots if kept else ())
        held = kept.snapshots.get(whole) if kept else None
        asked = self._asked.get(whole, self._changes(new.id))
        since = ["", *self._held.get(new.id, [])][asked:]
        if held is None or held not in since:
            yield "lost-data", f"{new.name} is promoted to {new.node_id}, and what was written before is not there"
        self._note(new.id, held or "")

    def _unused(self, volume: Volume) -> Found:
        """No VM runs with it on any other node than its own."""
        for node in self._world.nodes:
            if (volume.id, node.name) in self._outcast:
                continue
            if node.node_id != volume.node_id and (running := node.engine.running_with(volume.id)):
                yield "two-owners", f"{volume.name} comes to {volume.node_id}, and {running} have it on {node.name}"

    def _fenced(self, volume: Volume) -> Found:
        """No lease is in force by which a VM could run with it on the node that it leaves."""
        home = self._host(volume.node_id)
        if home is not None and (left_s := home.engine.lasts_s(volume.id)) > 0:
            yield "two-owners", f"{volume.name} is promoted, and {home.name} may have it for {left_s:.1f} s more"

    def _there(self, volume: Volume) -> str | None:
        host = self._host(volume.node_id)
        kept = host.engine.disks.kept.get(volume.id) if host else None
        return kept.holds if kept else None

    def _host(self, node_id: str) -> NodeHost | None:
        return next((node for node in self._world.nodes if node.node_id == node_id), None)

    def _last(self, volume_id: str) -> str:
        held = self._held.get(volume_id)
        return held[-1] if held else ""

    def _changes(self, volume_id: str) -> int:
        return len(self._held.get(volume_id, []))

    def _note(self, volume_id: str, text: str) -> None:
        self._held.setdefault(volume_id, []).append(text)


def _whole(told: str, there: Collection[str]) -> str:
    """The round that was told, or where that went because a later one had come, that one."""
    if told in there:
        return told
    copy, round_ = marked(told) or ("", 0)
    later = [found[1] for found in map(marked, there) if found is not None and found[0] == copy and found[1] > round_]
    return marker(copy, max(later, default=round_))
