"""Remove what carries the installation's names and belongs to nothing that lives.

Theory. After a crash the unprivileged side knows which VMs it still wants (`Keep`, by key, pid and start time); everything
else under our names is debris. Order matters: processes first, since they hold taps and cgroups; then links, cgroups and
leases. A zombie is never kept.

What cannot be killed, since it waits for a disk, is told of and left with all that its VM has: its uid and its tap must not
become another's while it has them still. A host with one such process starts and serves as any other.

Whose is it? A process is ours by its cgroup, or as a VMM of root or of a VM's uid whose `-name` has our key; a link by our
code; a cgroup by lying under our parent. Besides, links that follow our scheme but belong to no installation of this host
(none has a run directory) are removed where nobody holds their other end. Everything else is foreign and stays.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path, PurePath
from time import monotonic

from plasmavmc.host.helper.cgroups import NONE, Cgroups
from plasmavmc.host.helper.links import Links
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.helper.vm_groups import VmGroups
from plasmavmc.host.helper.worker import is_worker_process
from plasmavmc.host.names import CODE_OF_LINK, HostNames, is_key, is_shaper, shaper_name
from plasmavmc.host.operations import Keep, ProcessId, Swept, Unkillable
from plasmavmc.host.processes import argv_of, is_alive, kill, processes, read_process, uids_of

JAILED = frozenset({"firecracker", "jailer", "unshare", "nsenter"})
"""What a Firecracker's process is called, and was while its jail was made."""
_KILL_WAIT_S = 5.0


def vmm_key(names: HostNames, argv: tuple[str, ...]) -> str | None:
    """The key of our VM that a command line runs, if it is a VMM of ours."""
    program = PurePath(argv[0]).name if argv else ""
    is_named = program.startswith("qemu-system") or (bool(argv) and is_worker_process(argv))
    option = "-name" if is_named else "--id" if program in JAILED else ""
    if option not in argv[:-1]:
        return None
    name = argv[argv.index(option) + 1].partition(",")[0]
    prefix = names.process("")
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def codes_of(run_root: Path) -> frozenset[str]:
    """Codes of the installations of this host."""
    return frozenset(path.name[:4] for path in run_root.iterdir() if is_key(path.name))


@dataclass(frozen=True, slots=True)
class Sweeper:
    names: HostNames
    links: Links
    cgroups: Cgroups
    uids: Uids
    groups: VmGroups
    run_root: Path

    def sweep(self, keep: Keep, tunnels: frozenset[ProcessId] = frozenset()) -> Swept:
        """Remove what is ours and not kept, nor a process that survived SIGKILL for 5 s with what is its own. `tunnels`:
        processes that hold routes to other nodes."""
        vms = {key: process for key, process in keep.vms.items() if is_alive(process)}
        kept = frozenset((*vms.values(), *keep.processes)) | tunnels
        doomed = self.living() - kept
        left = self._kill_all(doomed)
        unkillable = tuple(Unkillable(process, self._key_of(process.pid)) for process in left)
        stays = frozenset((*vms, *(each.key for each in unkillable if each.key)))
        return Swept(
            processes=tuple(sorted(process.pid for process in doomed.difference(left))),
            taps=(*self._sweep_links(stays), *self._sweep_nobodys_links()),
            cgroups=self._sweep_cgroups(stays, kept.union(left)),
            uids=self._sweep_uids(stays),
            unkillable=unkillable,
        )

    def living(self) -> frozenset[ProcessId]:
        """All living processes that are ours."""
        in_groups = {pid for name in self.cgroups.children() for pid in self.cgroups.members(name)}
        found = {process.id for pid in in_groups if (process := read_process(pid)) is not None}
        named = {process.id for process in processes() if self._is_vmm(process.id.pid)}
        return frozenset(found | named)

    def _is_vmm(self, pid: int) -> bool:
        """Any user may call a process as he likes; one that carries our name is ours if a VM's uid, or root, runs it."""
        if vmm_key(self.names, argv_of(pid)) is None:
            return False
        return all(uid == 0 or self.uids.lends(uid) for uid in uids_of(pid))

    def runs(self, key: str, seats: Set[int] = frozenset()) -> bool:
        """Whether VM `key` has a process beside one that only waits to become its VMM."""
        if self.cgroups.confinement != NONE:
            return bool(self.groups.members(key) - seats)
        return any(vmm_key(self.names, argv_of(process.id.pid)) == key for process in processes())

    def remove_links(self) -> None:
        """Remove every link of ours, the bridge with them."""
        for name in self.links.names():
            if name.startswith(self.names.link_prefix):
                self.links.delete(name)

    def _kill_all(self, doomed: frozenset[ProcessId]) -> list[ProcessId]:
        """Those that live on."""
        deadline = monotonic() + _KILL_WAIT_S
        for process in doomed:
            kill(process, timeout_s=0)
        ordered = sorted(doomed, key=lambda process: process.pid)
        return [process for process in ordered if not kill(process, timeout_s=max(0.0, deadline - monotonic()))]

    def _key_of(self, pid: int) -> str:
        """Of the VM whose process it is, by uid, cgroup or name; empty: of none."""
        uids = uids_of(pid)
        for key in self.uids.keys - {*self.names.tunnels}:
            if self.uids.of(key) in uids or pid in self.groups.members(key):
                return key
        return vmm_key(self.names, argv_of(pid)) or ""

    def _sweep_links(self, vms: frozenset[str]) -> tuple[str, ...]:
        taps = {self.names.tap(key) for key in vms}
        stays = {self.names.bridge, *self.names.tunnels, *self.links.waiting, *taps, *map(shaper_name, taps)}
        swept = []
        for name, master in self.links.names().items():
            if name in stays:
                continue
            if name.startswith(self.names.link_prefix):
                self.links.delete(name)
                swept.append(name)
            elif master == self.names.bridge:
                self.links.release(name)
        return tuple(sorted(swept))

    def _sweep_nobodys_links(self) -> tuple[str, ...]:
        codes = codes_of(self.run_root) | {self.names.code}
        swept: list[str] = []
        names = self.links.names()
        for name in sorted(names, key=is_shaper):  # what belongs to a tap after the tap
            match = CODE_OF_LINK.fullmatch(name)
            if match and match[1] not in codes and self._is_idle(name, names.keys() - set(swept)):
                self.links.delete(name)
                swept.append(name)
        return tuple(sorted(swept))

    def _is_idle(self, name: str, present: Set[str]) -> bool:
        """A device that holds a tap back is always up; it is idle once its tap is gone."""
        if is_shaper(name):
            return not any(other != name and shaper_name(other) == name for other in present)
        return self.links.is_idle(name)

    def _sweep_cgroups(self, vms: frozenset[str], kept: frozenset[ProcessId]) -> tuple[str, ...]:
        stays = {self.groups.find(key) for key in vms}
        pids = {process.pid for process in kept}
        swept = [
            name
            for name in self.cgroups.children() - stays
            if not pids & self.cgroups.members(name) and self.cgroups.remove(name)
        ]
        return tuple(sorted(swept))

    def _sweep_uids(self, vms: frozenset[str]) -> tuple[int, ...]:
        freed = (self.uids.free(key) for key in self.uids.keys - vms - {*self.names.tunnels})
        return tuple(sorted(uid for uid in freed if uid is not None))
