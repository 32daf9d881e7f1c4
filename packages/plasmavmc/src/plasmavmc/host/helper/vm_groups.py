"""Which cgroup a VM has: `vm-<uid>`, so that a process can wait in it before anybody knows whose VM it will be (`seats`).

VMs of an older version are in `vm-<key>`, and stay there for their lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from plasmavmc.errors import HostError
from plasmavmc.host.helper.cgroups import NONE, Cgroups
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.names import HostNames
from plasmavmc.host.processes import has_process, kill, processes, uids_of

_KILL_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class VmGroups:
    names: HostNames
    cgroups: Cgroups
    uids: Uids

    def find(self, key: str) -> str | None:
        """The group of VM `key`; None where it can have none, for it has no uid."""
        older = self.names.keyed_cgroup(key)
        if self.cgroups.has(older):
            return older
        return self.names.vm_cgroup(self.uids.of(key)) if key in self.uids.keys else None

    def members(self, key: str) -> frozenset[int]:
        """Pids in VM `key`'s group."""
        group = self.find(key)
        return self.cgroups.members(group) if group else frozenset()

    def clear(self, key: str) -> None:
        """End what is left of VM `key`, whose VMM has ended, and remove its group. Whatever it forked has what it had."""
        group = self.find(key)
        if group is not None and not self.cgroups.remove(group):
            self.cgroups.end(group)
            self.cgroups.remove(group)
        if self.cgroups.confinement == NONE and key in self.uids.keys:
            _end_user(self.uids.of(key))

    def fresh(self, key: str) -> str:
        """The group for a new VMM of VM `key`, which has a uid and does not run.

        Raises:
            HostError: `host-cgroup`, what an older version left cannot be removed.
        """
        if not self.cgroups.remove(self.names.keyed_cgroup(key)):
            raise HostError("host-cgroup", f"the cgroup {self.names.keyed_cgroup(key)} cannot be removed: it is in use")
        return self.names.vm_cgroup(self.uids.of(key))


def _end_user(uid: int) -> None:
    """Kill all processes of a uid, and those that they fork meanwhile."""
    if not has_process(uid):
        return
    deadline = monotonic() + _KILL_WAIT_S
    while doomed := [each.id for each in processes() if uids_of(each.id.pid) == {uid}]:
        left = deadline - monotonic()
        if left <= 0:
            return
        for process in doomed:
            kill(process, timeout_s=left)
