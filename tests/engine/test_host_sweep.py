"""What root removes when the engine begins, where a process of nobody survives SIGKILL. Real processes, pretended links."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from plasmavmc.host.helper import sweep
from plasmavmc.host.helper.cgroups import V2
from plasmavmc.host.helper.sweep import Sweeper
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.helper.vm_groups import VmGroups
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Keep, ProcessId
from plasmavmc.host.processes import kill, read_process
from plasmavmc.types import vm_key

NAMES = HostNames.of("ins_a")
STUCK, OTHER = vm_key("vm_stuck"), vm_key("vm_other")


class Groups:
    """Cgroups by their names."""

    confinement = V2

    def __init__(self) -> None:
        self.groups: dict[str, set[int]] = {}

    def make(self, name: str, limits: object) -> tuple[Path, ...]:
        self.groups.setdefault(name, set())
        return ()

    def has(self, name: str) -> bool:
        return name in self.groups

    def members(self, name: str) -> frozenset[int]:
        return frozenset(pid for pid in self.groups.get(name, ()) if read_process(pid))

    def children(self) -> frozenset[str]:
        return frozenset(self.groups)

    def end(self, name: str) -> None:
        raise AssertionError(f"a sweep kills what is in {name} itself")

    def remove(self, name: str) -> bool:
        if self.members(name):
            return False
        self.groups.pop(name, None)
        return True

    def remove_parent(self) -> None:
        self.groups.clear()


class PretendedLinks:
    """Taps on the bridge."""

    waiting: tuple[str, ...] = ()

    def __init__(self, *names: str) -> None:
        self.present = set(names)

    def names(self) -> dict[str, str]:
        return dict.fromkeys(sorted(self.present), NAMES.bridge)

    def delete(self, name: str) -> None:
        self.present.discard(name)

    def release(self, name: str) -> None:
        raise AssertionError(f"{name} is ours")

    def is_idle(self, name: str) -> bool:
        return False


class World:
    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.groups = Groups()
        self.links = PretendedLinks(NAMES.tap(STUCK), NAMES.tap(OTHER))
        self.uids = Uids(directory / "uids", NAMES.key, range(70_000, 70_100))
        (directory / "run").mkdir()
        self.sweeper = Sweeper(
            NAMES,
            self.links,  # type: ignore[arg-type]  # what a sweep uses of them
            self.groups,
            self.uids,
            VmGroups(NAMES, self.groups, self.uids),
            directory / "run",
        )
        self.stuck, self.other = self._run(STUCK), self._run(OTHER)

    def _run(self, key: str) -> int:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self._stack.callback(child.wait)
        self._stack.callback(child.kill)
        self.groups.groups[NAMES.vm_cgroup(self.uids.take(key))] = {child.pid}
        return child.pid


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with ExitStack() as stack:
        world = World(tmp_path, stack)

        def spare_the_stuck(process: ProcessId, timeout_s: float) -> bool:
            return process.pid != world.stuck and kill(process, timeout_s)

        monkeypatch.setattr(sweep, "kill", spare_the_stuck)
        monkeypatch.setattr(sweep, "_KILL_WAIT_S", 2.0)
        yield world


def test_a_process_that_survives_keeps_what_it_has_and_all_else_is_swept(world: World) -> None:
    swept = world.sweeper.sweep(Keep())
    assert [(each.process.pid, each.key) for each in swept.unkillable] == [(world.stuck, STUCK)]
    assert swept.processes == (world.other,)
    assert swept.taps == (NAMES.tap(OTHER),)
    assert world.links.present == {NAMES.tap(STUCK)}
    assert world.uids.keys == {STUCK}
    assert world.groups.children() == {NAMES.vm_cgroup(world.uids.of(STUCK))}
