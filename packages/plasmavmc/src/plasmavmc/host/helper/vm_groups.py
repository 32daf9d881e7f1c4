"""Which cgroup a VM has: `vm-<uid>`, so that a process can wait in it before anybody knows whose VM it will be (`seats`).

VMs of an older version are in `vm-<key>`, and stay there for their lives.
"""

from __future__ import annotations

from dataclasses import dataclass

from plasmavmc.errors import HostError
from plasmavmc.host.helper.cgroups import Cgroups
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.names import HostNames


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

    def remove(self, key: str) -> None:
        """Remove VM `key`'s group, where it has one and nothing lives in it."""
        if group := self.find(key):
            self.cgroups.remove(group)

    def fresh(self, key: str) -> str:
        """The group for a new VMM of VM `key`, which has a uid and does not run.

        Raises:
            HostError: `host-cgroup`, what an older version left cannot be removed.
        """
        if not self.cgroups.remove(self.names.keyed_cgroup(key)):
            raise HostError("host-cgroup", f"the cgroup {self.names.keyed_cgroup(key)} cannot be removed: it is in use")
        return self.names.vm_cgroup(self.uids.of(key))
