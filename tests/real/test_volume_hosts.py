"""A volume that a real VM writes all the time, on real hosts: kept in a snapshot, copied, put back and moved; then its host
dies, and the next one is cut off while it lives. Whatever the client was told is written is there, or is told as lost.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from examples.cluster.node import JoinedNode
from shellwego.core.liveness import BEAT_S
from shellwego.core.volumeleases import OVER_S, STOP_SHARE, TERM_S
from tests.real.beside import Beside
from tests.real.platform_harness import PATIENCE_S, until
from tests.real.recording import Recording
from tests.real.volume_hosts import APP, COPY_APP, VolumeHosts, shown, volume_hosts

pytestmark = [pytest.mark.real, pytest.mark.nightly]

ENOUGH = 20
"""Records, before something is done to the volume."""
EVERY_S = 5
EDGE_S = 5.0
"""What a client may feel of a stop beyond what the platform tells of it: a request that waits, a route that is laid."""
TAKEN_OVER_S = OVER_S + PATIENCE_S


@pytest.fixture(scope="module")
def hosts() -> Iterator[VolumeHosts]:
    with volume_hosts() as made:
        yield made


class Owners(Beside):
    """Looks all the time, while its context is open, whether VMs are on both nodes at once."""

    def __init__(self, *nodes: JoinedNode) -> None:
        super().__init__()
        self._nodes = nodes
        self.most = 0
        self.looks = 0

    def _work(self) -> None:
        while not self._stop.wait(0.1):
            self.looks += 1
            self.most = max(self.most, sum(bool(node.vmms()) for node in self._nodes))


def protected(hosts: VolumeHosts, recording: Recording) -> None:
    """The standby follows, brought up since now."""
    began = time.monotonic()

    def follows() -> bool:
        standby = hosts.volume()["standby"]
        fresh = standby is not None and standby["age_s"] is not None
        return fresh and standby["state"] == "following" and standby["age_s"] < time.monotonic() - began

    until(follows, "the standby follows")
    assert recording.has(1, began)


def taken_over(hosts: VolumeHosts, by: JoinedNode, recording: Recording) -> None:
    until(lambda: hosts.home is by, "the standby is the volume", within_s=TAKEN_OVER_S)
    since = time.monotonic()
    until(lambda: recording.has(ENOUGH, since) and hosts.serves(), "the app records there", within_s=TAKEN_OVER_S)


def told_what_is_lost(hosts: VolumeHosts, acknowledged: dict[int, float], ended_at: float) -> None:
    """Every record that is missing is younger than what the promotion tells as lost."""
    lost = hosts.recorder.recorded().missing({serial: at for serial, at in acknowledged.items() if at < ended_at})
    told = hosts.volume()["promotion"]["lost_s"]
    oldest = ended_at - min(lost.values(), default=ended_at)
    assert oldest <= told + BEAT_S + EDGE_S, f"{len(lost)} records of the last {oldest:.1f} s; told {told} s"
    assert told <= 3 * EVERY_S + BEAT_S, "the standby was no older"


def test_what_it_holds_is_kept_copied_put_back_and_moved(hosts: VolumeHosts) -> None:
    with Recording(hosts.recorder) as recording:
        until(lambda: recording.has(ENOUGH), "it is written")
        before = recording.acknowledged()
        snapshot = shown(hosts, "snapshot", "data")["id"]
        since = time.monotonic()
        until(lambda: recording.has(ENOUGH, since), "it is written on")
        shown(hosts, "restore", "data", snapshot, "--to", "copy")
        hosts.deploy(COPY_APP, "copy")
        copied = hosts.recorder_of(COPY_APP).recorded()
    assert copied.missing(before) == {}
    later = {serial: at for serial, at in recording.acknowledged().items() if at > since}
    assert copied.missing(later) == later

    hosts.swg("apps", "stop", APP)
    until(lambda: hosts.volume()["state"] == "available", "the volume is free")
    hosts.swg("volumes", "restore", "data", snapshot, "-y")
    hosts.swg("apps", "start", APP)
    until(hosts.serves, "the app serves again")
    assert hosts.recorder.recorded().text == copied.text, "copied and put back are the same"

    hosts.swg("apps", "destroy", COPY_APP, "-y")
    until(lambda: hosts.volume("copy")["state"] == "available" and not hosts.volume("copy")["mounted_by"], "let go")
    hosts.swg("volumes", "rm", "copy", "-y")
    until(lambda: "copy" not in {each["name"] for each in shown(hosts, "ls")}, "the copy is gone")

    source, target = hosts.home, hosts.other
    with Recording(hosts.recorder) as recording:
        until(lambda: recording.has(ENOUGH), "it is written")
        hosts.swg("volumes", "move", "data", "--to", target.name)
        since = time.monotonic()
        until(lambda: recording.has(ENOUGH, since) and hosts.serves(), "the app records there")
    move = hosts.volume()["move"]
    assert (hosts.home, move["stage"], source.vmms(), len(target.vmms())) == (target, "done", {}, 1)
    assert hosts.recorder.recorded().missing({**recording.acknowledged()}) == {}
    assert 0 < recording.longest_silence() <= move["stopped_s"] + EDGE_S, move
    assert hosts.snapshots() == {snapshot: "available"}
    assert (hosts.stored(source), hosts.stored(target)) == (False, True)


def test_the_standby_takes_over_when_its_host_dies(hosts: VolumeHosts) -> None:
    source, target = hosts.home, hosts.other
    for before in hosts.snapshots():
        hosts.swg("volumes", "snapshots", "rm", "data", before, "-y")
    hosts.swg("volumes", "replicate", "data", "--every", f"{EVERY_S}s")
    with Recording(hosts.recorder) as recording:
        until(lambda: recording.has(ENOUGH), "it is written")
        snapshot = shown(hosts, "snapshot", "data")["id"]
        protected(hosts, recording)
        until(lambda: hosts.on_standby() == {snapshot: True}, "the snapshot is there, too")
        hosts.switch.unplug(source.host)
        source.die()
        ended_at = time.monotonic()
        assert not source.host.processes(), "agent, helper, VMs and warden are gone"
        taken_over(hosts, target, recording)
    told_what_is_lost(hosts, recording.acknowledged(), ended_at)
    assert hosts.snapshots() == {snapshot: "available"}
    shown(hosts, "restore", "data", snapshot, "--to", "again")
    hosts.swg("volumes", "rm", "again", "-y")
    hosts.switch.plug(source.host)
    source.start()
    until(lambda: hosts.health(source) == "ready", "its node is back")
    (left,) = (copy for copy in hosts.volume()["copies"] if copy["purpose"] == "left")
    assert left["node"] == source.name
    assert hosts.stored(source)
    assert not source.vmms(), "nothing begins with what it has"
    hosts.swg("volumes", "drop-copy", "data", left["id"], "-y")
    until(lambda: (hosts.volume()["standby"] or {}).get("node") == source.name, "it keeps the next standby")


def test_a_node_that_is_cut_off_and_stands_still_has_let_go_before(hosts: VolumeHosts) -> None:
    """Its agent cannot stop the VM, so the warden ends it."""
    source, target = hosts.home, hosts.other
    with Recording(hosts.recorder) as recording:
        until(lambda: recording.has(ENOUGH), "it is written")
        protected(hosts, recording)
        with Owners(source, target) as owners:
            hosts.switch.unplug(source.host)
            source.signal(signal.SIGSTOP)
            ended_at = time.monotonic()
            until(lambda: hosts.health(source) == "down", "it is down")
            assert source.vmms(), "its VM lives on"
            until(lambda: not source.vmms(), "the warden ended its VM", within_s=OVER_S)
            assert time.monotonic() - ended_at > TERM_S * STOP_SHARE, "while it could be the agent's, it was left alone"
            taken_over(hosts, target, recording)
            source.signal(signal.SIGCONT)
            hosts.switch.plug(source.host)
            until(lambda: hosts.health(source) == "ready", "its node is back")
    assert (owners.most, owners.looks > 100) == (1, True)
    told_what_is_lost(hosts, recording.acknowledged(), ended_at)
    assert hosts.serves()
    assert not source.vmms()
