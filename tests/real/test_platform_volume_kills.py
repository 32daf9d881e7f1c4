"""A volume that a real VM writes all the time, on real hosts, and a process killed in the middle of each thing that is done
to it: kept in a snapshot, copied, put back, moved there and back. What was killed comes back, as by a supervisor; what was
begun is done, or is told as refused and can be done again; what the client was told is written is there, with its sums; and
nothing is left over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from plasmavmc.types import GIB
from tests.contract.zfs_pool import pool
from tests.real.platform_harness import api, ask, done, platform_processes, scratch_platform, until, wait_for_end
from tests.real.recording import Recorded, Recorder, Recording
from tests.real.volume_hosts import APP, COPY_APP, VolumeHosts, deploy_recorder, load_recorder, volume_hosts
from tests.real.volume_kills import Disks, FileDisks, Sign, Victim, ZfsDisks, being_copied, killed, stage, struck, told

pytestmark = pytest.mark.real

ENOUGH = 20
"""Records, before something is done to the volume."""
LONG_S = 600.0
"""For what is tried anew, ever less often, by who came back."""
Table = list[str]
World = tuple[VolumeHosts, Disks]


@pytest.fixture(scope="module", params=["file", "zfs"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        if request.param == "file":
            yield stack.enter_context(volume_hosts()), FileDisks()
        else:
            tank = stack.enter_context(pool(GIB))
            yield stack.enter_context(volume_hosts("--zfs", tank)), ZfsDisks(tank)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    rows: Table = []
    yield rows
    print("\n" + "\n".join(f"| {row} |" for row in ("driver | step | killed | outcome | after", *rows)))


class Drill:
    """One victim, killed in each thing that is done to the volume."""

    def __init__(self, hosts: VolumeHosts, disks: Disks, victim: Victim, table: Table) -> None:
        self.hosts = hosts
        self.disks = disks
        self.victim = victim
        self._table = table

    def outcome(self, step: str, sign: Sign, order: Callable[[], Any], ended: Callable[[], str]) -> str:
        """How a step ended in whose middle the victim was killed; `ended` tells, and is empty until then."""
        with killed(self.hosts, self.victim, sign):
            order()
        since = time.monotonic()
        found = until(ended, f"{step} is done or refused", within_s=LONG_S)
        self._table.append(f"{self.disks.name} | {step} | {self.victim} | {found} | {time.monotonic() - since:.1f} s")
        return found

    def snapshot(self) -> str:
        """Of a volume that is written."""
        taken = ""

        def order() -> None:
            nonlocal taken
            taken = self._take()

        sign = partial(self.disks.shows, self.hosts.home, "snapshot")
        if self.outcome("snapshot", sign, order, lambda: self._snapshot_ended(taken)) == "done":
            return taken
        self._forget(taken)
        until(self.hosts.serves, "the app serves again", within_s=LONG_S)
        return self.take()

    def take(self) -> str:
        """One during which nobody is killed."""
        taken = self._take()
        until(lambda: self._snapshot_ended(taken) == "done", "a snapshot is taken")
        return taken

    def clone(self, snapshot: str) -> None:
        home = self.hosts.home
        body = {"snapshot": snapshot, "to": "copy"}
        found = self.outcome(
            "clone",
            partial(self.disks.shows, home, "clone"),
            lambda: done(self.hosts.platform, "POST", "volumes/data/restore", body),
            lambda: _settled(self.hosts, "copy"),
        )
        assert found == "available"

    def restore(self, snapshot: str) -> None:
        home = self.hosts.home
        found = self.outcome(
            "restore",
            partial(self.disks.shows, home, "restore"),
            lambda: done(self.hosts.platform, "POST", "volumes/data/restore", {"snapshot": snapshot}),
            lambda: _settled(self.hosts, "data"),
        )
        assert found == "available"

    def move(self, when: str, sign: Sign) -> None:
        source, target = self.hosts.home, self.hosts.other
        body = {"node": target.name}
        found = self.outcome(
            f"move, {when}",
            sign,
            lambda: done(self.hosts.platform, "POST", "volumes/data/actions/move", body),
            self._moved,
        )
        assert (found, self.hosts.home, source.vmms()) == ("done", target, {})

    def _moved(self) -> str:
        move = self.hosts.volume()["move"]
        ended = move["stage"] in ("done", "failed", "cancelled")
        return f"{move['stage']} {move['reason']}".strip() if ended else ""

    def _take(self) -> str:
        return str(done(self.hosts.platform, "POST", "volumes/data/snapshots", {})["id"])

    def _snapshot_ended(self, snapshot: str) -> str:
        found = api(self.hosts.platform, f"volumes/data/snapshots/{snapshot}")
        return {"available": "done", "error": f"refused: {found['reason']}"}.get(found["state"], "")

    def _forget(self, snapshot: str) -> None:
        done(self.hosts.platform, "DELETE", f"volumes/data/snapshots/{snapshot}")
        until(lambda: snapshot not in self.hosts.snapshots(), "the snapshot is gone")

    def clean(self, snapshot: str) -> None:
        self._forget(snapshot)
        self.nothing_else()

    def nothing_else(self) -> None:
        """What is on the nodes is what the API tells of, and one VM."""
        home, other = self.hosts.home, self.hosts.other
        until(lambda: (self.disks.kept(home), self.disks.kept(other)) == (told(self.hosts), {}), "nothing is left")
        assert (len(home.vmms()), len(other.vmms())) == (1, 0)


def _settled(hosts: VolumeHosts, name: str) -> str:
    state = str(hosts.volume(name)["state"])
    return state if state in ("available", "attached", "error") else ""


def copy_holds(hosts: VolumeHosts) -> Recorded:
    """What an app finds in the copy, which goes again."""
    hosts.deploy(COPY_APP, "copy")
    found = hosts.recorder_of(COPY_APP).recorded()
    hosts.swg("apps", "destroy", COPY_APP, "-y")
    until(lambda: hosts.volume("copy")["state"] == "available" and not hosts.volume("copy")["mounted_by"], "let go")
    hosts.swg("volumes", "rm", "copy", "-y")
    until(lambda: ask(hosts.platform, "GET", "volumes/copy")[0] == 404, "the copy is gone")
    return found


def kept_and_copied(drill: Drill) -> tuple[str, Recorded]:
    """A snapshot of what is written, and what an app finds in a copy of it."""
    hosts = drill.hosts
    with Recording(hosts.recorder) as recording:
        until(lambda: recording.has(ENOUGH), "it is written")
        before = recording.acknowledged()
        snapshot = drill.snapshot()
        since = time.monotonic()
        until(lambda: recording.has(ENOUGH, since), "it is written on", within_s=LONG_S)
        drill.clone(snapshot)
    copied = copy_holds(hosts)
    assert copied.missing(before) == {}
    later = {serial: at for serial, at in recording.acknowledged().items() if at > since}
    assert len(copied.missing(later)) >= len(later) - 1, "but for one that was on its way"
    assert hosts.recorder.recorded().missing(recording.acknowledged()) == {}
    return snapshot, copied


def put_back(drill: Drill, snapshot: str, copied: Recorded) -> None:
    hosts = drill.hosts
    hosts.swg("apps", "stop", APP)
    until(lambda: hosts.volume()["state"] == "available", "the volume is free", within_s=LONG_S)
    drill.restore(snapshot)
    hosts.swg("apps", "start", APP)
    until(hosts.serves, "the app serves again", within_s=LONG_S)
    assert hosts.recorder.recorded().text == copied.text, "copied and put back are the same"


def moved(drill: Drill, snapshot: str, when: str, sign: Sign) -> None:
    hosts = drill.hosts
    with Recording(hosts.recorder) as recording:
        until(lambda: recording.has(ENOUGH), "it is written")
        drill.move(when, sign)
        since = time.monotonic()
        until(lambda: recording.has(ENOUGH, since) and hosts.serves(), "the app records there", within_s=LONG_S)
    assert hosts.recorder.recorded().missing(recording.acknowledged()) == {}
    assert hosts.snapshots() == {snapshot: "available"}
    drill.nothing_else()


def there_and_back(drill: Drill, snapshot: str, *, back: str = "last") -> None:
    """The way back is cut at this stage of it."""
    moved(drill, snapshot, "first round", partial(drill.disks.shows, drill.hosts.other, "receive"))
    moved(drill, snapshot, back, partial(stage, drill.hosts, back))


@pytest.mark.nightly
@pytest.mark.parametrize("victim", [Victim.AGENT, Victim.HELPER, Victim.SERVER])
def test_what_a_vm_wrote_is_there_whoever_is_killed(world: World, table: Table, victim: Victim) -> None:
    drill = Drill(*world, victim, table)
    snapshot, copied = kept_and_copied(drill)
    put_back(drill, snapshot, copied)
    there_and_back(drill, snapshot)
    drill.clean(snapshot)


@pytest.mark.nightly
def test_and_so_it_is_where_its_own_vm_is_killed(world: World, table: Table) -> None:
    """It is not there while the volume is put back, or sent for the last time."""
    drill = Drill(*world, Victim.VMM, table)
    snapshot, _ = kept_and_copied(drill)
    there_and_back(drill, snapshot, back="stopping")
    drill.clean(snapshot)


@pytest.mark.nightly
def test_and_so_it_is_where_the_receiver_is_killed(world: World, table: Table) -> None:
    drill = Drill(*world, Victim.RECEIVER, table)
    snapshot = drill.take()
    there_and_back(drill, snapshot)
    drill.clean(snapshot)


def test_a_snapshot_in_whose_middle_the_platform_is_killed_holds_what_was_acknowledged(tmp_path: Path) -> None:
    """One host, one step: what is left of the above each time."""
    with scratch_platform() as platform:
        load_recorder(platform, tmp_path)
        platform.swg("volumes", "create", "data", "--size", "64m")
        deploy_recorder(platform, APP, "data")
        with Recording(Recorder(platform.http_port, f"{APP}.localhost")) as recording:
            until(lambda: recording.has(ENOUGH), "it is written")
            before, present = recording.acknowledged(), platform_processes(platform)
            with struck(present[1:2], partial(being_copied, platform.data_dir)):
                snapshot = done(platform, "POST", "volumes/data/snapshots", {})["id"]
            wait_for_end(platform, present)
            platform.start()
            until(lambda: api(platform, f"volumes/data/snapshots/{snapshot}")["state"] == "available", "it is taken")
        platform.swg("volumes", "restore", "data", snapshot, "--to", "copy")
        deploy_recorder(platform, COPY_APP, "copy")
        assert Recorder(platform.http_port, f"{COPY_APP}.localhost").recorded().missing(before) == {}
        held = Recorder(platform.http_port, f"{APP}.localhost").recorded()
        assert held.missing(recording.acknowledged()) == {}
        assert not being_copied(platform.data_dir)
