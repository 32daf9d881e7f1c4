"""Kills in the middle of what is done to a volume: of whom, at which sign, and how he comes back, as by a supervisor."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from examples.cluster.node import JoinedNode
from plasmavmc.host.names import HostNames
from tests.contract.zfs_pool import command
from tests.real.beside import Beside
from tests.real.platform_harness import api, arguments_of, platform_processes, until, wait_for_end
from tests.real.volume_hosts import VolumeHosts

END_S = 120.0
"""So long after one half of a split process the other may be there: it waits for the command that it runs."""
Sign = Callable[[], bool]


class Victim(StrEnum):
    AGENT = "agent"
    HELPER = "root's helper"
    VMM = "QEMU"
    SERVER = "server"
    RECEIVER = "agent of the other node"


@dataclass(frozen=True, slots=True)
class Blow:
    pids: Sequence[int]
    come_back: Callable[[], None]


class Ambush(Beside):
    """Looks for the sign without a pause, before all others on the host, and kills at once: some signs last milliseconds."""

    def __init__(self, sign: Sign, pids: Sequence[int]) -> None:
        super().__init__()
        self._sign = sign
        self._pids = pids
        self.struck = threading.Event()

    def _work(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        while not self._stop.is_set():
            if self._sign():
                for pid in self._pids:
                    os.kill(pid, signal.SIGKILL)
                self.struck.set()
                return


@contextmanager
def killed(hosts: VolumeHosts, victim: Victim, sign: Sign) -> Iterator[None]:
    """Who is killed as soon as the sign shows of what the block began; he is back at its end."""
    blow = _blow(hosts, victim)
    with struck(blow.pids, sign):
        yield
    blow.come_back()


@contextmanager
def struck(pids: Sequence[int], sign: Sign) -> Iterator[None]:
    """These are killed as soon as the sign shows of what the block began, and have ended at its end."""
    with Ambush(sign, pids) as ambush:
        yield
        until(ambush.struck.is_set, "the sign at which somebody is killed")
    until(lambda: not any(map(arguments_of, pids)), "who was killed has ended", within_s=END_S)


def being_copied(data_dir: Path) -> bool:
    """Of the drivers that keep files: one is being written."""
    volumes = data_dir / "volumes"
    with suppress(OSError):  # one may go while it is looked at
        return any(volumes.glob("*.part")) or any(volumes.glob("*/*.part"))
    return False


def stage(hosts: VolumeHosts, name: str) -> bool:
    """Whether the volume's move is at this stage, as far as the server answers."""
    with suppress(OSError):
        return bool(hosts.volume()["move"]["stage"] == name)
    return False


def _blow(hosts: VolumeHosts, victim: Victim) -> Blow:
    match victim:
        case Victim.HELPER:
            return _half(hosts.home, 0)
        case Victim.AGENT:
            return _half(hosts.home, 1)
        case Victim.RECEIVER:
            return _half(hosts.other, 1)
        case Victim.VMM:
            (pid,) = hosts.home.vmms()
            return Blow([pid], lambda: None)
        case Victim.SERVER:
            return _server(hosts)


def _half(node: JoinedNode, place: int) -> Blow:
    present = node.processes()

    def come_back() -> None:
        assert node.process is not None
        node.process.wait(END_S)
        node.process = None
        until(lambda: not any(map(arguments_of, present)), f"all of {node.name} has ended", within_s=END_S)
        node.start()

    return Blow([present[place]], come_back)


def _server(hosts: VolumeHosts) -> Blow:
    present = platform_processes(hosts.platform)

    def come_back() -> None:
        wait_for_end(hosts.platform, present)
        hosts.platform.start()

    return Blow([present[1]], come_back)


def told(hosts: VolumeHosts) -> dict[str, set[str]]:
    """What should be on the volume's node: volumes, and their snapshots."""
    found = {}
    for volume in api(hosts.platform, "volumes")["data"]:
        listed = api(hosts.platform, f"volumes/{volume['id']}/snapshots")["data"]
        found[volume["id"]] = {each["id"] for each in listed}
    return found


class FileDisks:
    """The driver `file`: a step shows by a file that is being written."""

    name = "file"

    def shows(self, node: JoinedNode, _step: str) -> bool:
        return being_copied(node.data_dir)

    def kept(self, node: JoinedNode) -> dict[str, set[str]]:
        """What is on a node, as `told`; what else there is comes with all of its name."""
        found = {}
        for place in (node.data_dir / "volumes").iterdir():
            found[place.name] = {each.name.removesuffix(".snapshot") for each in place.iterdir()} - {"volume.luks"}
        return found


class ZfsDisks:
    """The driver `zfs`: a step shows by the command that root's helper runs for it."""

    name = "zfs"
    _commands: ClassVar[Mapping[str, str]] = {
        "snapshot": "snapshot",
        "clone": "clone",
        "restore": "rollback",
        "receive": "create",
    }

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset

    def shows(self, node: JoinedNode, step: str) -> bool:
        with suppress(OSError):  # one may end while it is looked at
            tasks = Path(f"/proc/{node.processes()[0]}/task").iterdir()
            children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
            running = [words for words in map(arguments_of, children) if words and Path(words[0]).name == "zfs"]
            return any(self._commands[step] in words for words in running)
        return False

    def kept(self, node: JoinedNode) -> dict[str, set[str]]:
        """What is on a node, as `told`."""
        base = f"{self._dataset}/{HostNames(node.key).dataset}"
        names = command("zfs", "list", "-H", "-o", "name", "-r", "-t", "filesystem,snapshot", base).split()[1:]
        found: dict[str, set[str]] = {name.rpartition("/")[2]: set() for name in names if "@" not in name}
        for name in names:
            volume, _, snapshot = name.rpartition("/")[2].partition("@")
            found[volume] |= {snapshot} - {""}
        return found


Disks = FileDisks | ZfsDisks
