"""`Host` without privileges: the same checks and the same answers, on things that exist in memory only.

Descriptors are real (so that callers handle them as such), processes are not: `end` lets one end. Values are checked by
the very functions that the root helper uses.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import signal as signals
import time
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from itertools import count

from plasmavmc.errors import HostError
from plasmavmc.host import rotation
from plasmavmc.host.configuration import HelperConfiguration, Listener
from plasmavmc.host.helper import checks
from plasmavmc.host.helper.argv import check_argv
from plasmavmc.host.helper.checks_ports import check_ports
from plasmavmc.host.helper.fences import fenced
from plasmavmc.host.helper.guest_memory import no_memory
from plasmavmc.host.helper.roster import Roster
from plasmavmc.host.helper.sockets import listen, open_datagrams
from plasmavmc.host.helper.wireguard_device import public_key
from plasmavmc.host.names import shaper_name
from plasmavmc.host.operations import (
    Bridge,
    Guarding,
    Keep,
    Limits,
    Peer,
    ProcessId,
    Reach,
    Routed,
    RuleSet,
    Spawned,
    Swept,
    TapRequest,
)
from plasmavmc.host.processes import is_alive
from plasmavmc.host.rotation import SLOTS
from plasmavmc.types import NetworkUsage

CONFINEMENT = "rlimits"
_FIRST_PID = 5_000_000
"""Above any pid that a kernel gives (4,194,304), so that a fake process is never taken for a real one."""


@dataclass(slots=True)
class MemoryProcess:
    """A VMM that does nothing."""

    key: str
    id: ProcessId
    argv: tuple[str, ...]
    limits: Limits
    alive_end: int
    """Closed when the process ends, which makes the caller's pidfd readable."""
    stdout_end: int
    code: int | None = None
    signals: list[int] = field(default_factory=list)


class MemoryHost:
    """All that a `Host` was asked for, to look at: `bridge`, `rules`, `routes`, `taps`, `uids`, `vms`, `placed`."""

    def __init__(self, configuration: HelperConfiguration, *, networks: Sequence[IPv4Network] = ()) -> None:
        self._configuration = configuration
        self._names = configuration.names
        self._networks = tuple(networks)
        self._pids = count(_FIRST_PID)
        self.bridge: Bridge | None = None
        self.rules: RuleSet | None = None
        self.routes: tuple[Peer, ...] = ()
        self.reach = Reach()
        self.encrypted_by = "kernel"
        """Who is WireGuard here; empty: nobody."""
        self.neighbourhood = IPv4Network("192.0.2.0/24")
        """Where it has a way to."""
        self.taps: dict[str, TapRequest] = {}
        self.shapers: set[str] = set()
        """Devices that hold back what comes in at taps."""
        self.lacks = ""
        """What its kernel lacks to limit taps."""
        self.made_ahead = 0
        """Taps that wait; two are enough here."""
        self.guarding = Guarding("tcx", "")
        """How its taps are guarded."""
        self.traffic: dict[str, NetworkUsage] = {}
        """What has passed which tap."""
        self.lacks_ipv6 = ""
        """What its kernel lacks for IPv6 on the bridge."""
        self.wiped = ""
        """What others took away of the rules."""
        self.uids: dict[str, int] = {}
        self.seats: list[bool] = []
        """Those asked for: whether with KVM. Nothing waits in them here."""
        self.vms: dict[str, MemoryProcess] = {}
        self.placed: dict[ProcessId, str] = {}
        self.fences: dict[str, float] = {}
        """When VMs end, by their keys."""
        self._generations: dict[int, int] = {}
        """Of the keys of WireGuard, by slot."""

    def end(self, key: str, code: int) -> None:
        """Let VM `key`'s process end with this code."""
        process = self.vms[key]
        if process.code is None:
            process.code = code
            os.close(process.alive_end)
            os.close(process.stdout_end)

    def close(self) -> None:
        """End everything, so that no descriptor is left."""
        for key in self.vms:
            self.end(key, -signals.SIGKILL)

    async def bridge_ensure(self, bridge: Bridge) -> str:
        checks.check_bridge(self._names, bridge)
        if any(network.overlaps(bridge.network) for network in self._networks):
            raise HostError("subnet-taken", f"{bridge.network} is in use on this host")
        self.bridge = bridge
        return self.lacks_ipv6

    async def rules_apply(self, rules: RuleSet) -> None:
        checks.check_rules(self._names, rules)
        Roster(self._names, rules)
        check_ports(rules, self._configuration.publish)
        self._bridge()
        self.rules = rules
        self.wiped = ""

    async def rules_fault(self) -> str:
        return self.wiped

    async def routes_apply(self, peers: Sequence[Peer], reach: Reach) -> Routed:
        checks.check_peers(peers)
        checks.check_reach(reach)
        self._bridge()
        if reach.ports and not self.encrypted_by:
            raise HostError("no-wireguard", "nobody here is WireGuard")
        self.reach = reach
        self.routes = tuple(
            peer
            for peer in peers
            if peer.via in self.neighbourhood and reach.fits(peer) and bool(peer.keys) == bool(reach.ports)
        )
        lacking = tuple(peer for peer in peers if peer not in self.routes)
        if not reach.ports:
            return Routed(lacking)
        return Routed(lacking, tuple(public_key(self._key(reach, slot)) for slot in SLOTS), self.encrypted_by)

    def _key(self, reach: Reach, slot: int) -> str:
        """The private key that a slot has, by what the host was told first and then."""
        late = rotation.next_generation(reach.step, [self._generations.get(slot, -1) for slot in SLOTS])
        if slot not in self._generations:
            self._generations[slot] = rotation.first_generation(reach.step, slot)
        elif late is not None and slot != rotation.slot_in_use(reach.step):
            self._generations[slot] = late
        seed = f"{self._names.key} {slot} {self._generations[slot]}".encode()
        return b64encode(hashlib.sha256(seed).digest()).decode()

    async def networks_in_use(self) -> tuple[IPv4Network, ...]:
        return self._networks

    async def tap_open(self, tap: TapRequest) -> int:
        checks.check_tap(self._names, tap)
        self._bridge()
        if tap.name in self.taps:
            raise HostError("host-network", f"tap {tap.name}: exists")
        self.taps[tap.name] = tap
        self.made_ahead = max(0, self.made_ahead - 1)
        if tap.transmit:
            self.shapers.add(shaper_name(tap.name))
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    async def tap_make(self) -> bool:
        self.made_ahead = min(self.made_ahead + 1, 2)
        return self.made_ahead < 2

    async def tap_forget(self, name: str) -> None:
        checks.check_tap_name(self._names, name)
        self.shapers.discard(shaper_name(name))

    async def limits_lack(self) -> str:
        return self.lacks

    async def taps_guarding(self) -> Guarding:
        self._bridge()
        return self.guarding

    async def taps_usage(self, names: Collection[str]) -> Mapping[str, NetworkUsage]:
        for name in names:
            checks.check_tap_name(self._names, name)
        return {name: self.traffic.get(name, NetworkUsage()) for name in names if name in self.taps}

    async def uid_take(self, key: str, *, seat: bool = False) -> int:
        checks.check_key(key)
        if key not in self.uids:
            self.uids[key] = min(uid for uid in self._configuration.vm_uids if uid not in self.uids.values())
        return self.uids[key]

    async def uid_free(self, key: str) -> None:
        checks.check_key(key)
        self.uids.pop(key, None)
        self.fences.pop(key, None)

    async def seat_make(self, *, kvm: bool) -> None:
        self.seats.append(kvm)

    async def vm_spawn(self, key: str, argv: Sequence[str], limits: Limits, fds: Mapping[str, int]) -> Spawned:
        checks.check_key(key)
        checks.check_limits(limits)
        checks.check_fd_names(tuple(fds))
        names = self._names
        check_argv(argv, process_name=names.process(key), vmms=self._configuration.vmms, fds=tuple(fds))
        if key in self.vms and self.vms[key].code is None:
            raise checks.refusal("a VM", f"{key} runs already")
        if key not in self.uids:
            raise checks.refusal("a VM", f"{key} has no uid; take one first")
        if self._is_over(key):
            raise fenced(key)
        pidfd, alive_end = os.pipe2(os.O_CLOEXEC)
        stdout, stdout_end = os.pipe2(os.O_CLOEXEC)
        process = MemoryProcess(key, ProcessId(next(self._pids), 1), tuple(argv), limits, alive_end, stdout_end)
        self.vms[key] = process
        return Spawned(process.id.pid, process.id.start_time, pidfd, CONFINEMENT, stdout)

    async def vm_limit(self, key: str, limits: Limits) -> None:
        checks.check_key(key)
        checks.check_limits(limits)
        if key not in self.vms or self.vms[key].code is not None:
            raise checks.refusal("limits", f"{key} has no running VM")
        self.vms[key].limits = limits

    async def vm_signal(self, key: str, process: ProcessId, signal: int) -> bool:
        checks.check_key(key)
        checks.check_signal(signal)
        if key not in self.uids:
            raise checks.refusal("a signal", f"{key} has no uid")
        owner = next((vm for vm in self.vms.values() if vm.id == process and vm.code is None), None)
        if owner is None:
            return False
        if owner.key != key:
            raise checks.refusal("a signal", f"process {process.pid} is not of VM {key}'s uid")
        owner.signals.append(signal)
        if signal in (signals.SIGKILL, signals.SIGTERM, signals.SIGINT):
            self.end(key, -signal)
        return True

    async def vm_memory(self, key: str, process: ProcessId) -> int:
        checks.check_key(key)
        if key not in self.uids:
            raise checks.refusal("a VM", f"{key} has no uid; take one first")
        owner = next((vm for vm in self.vms.values() if vm.id == process and vm.code is None), None)
        if owner is None:
            raise HostError("no-process", f"the process {process.pid} has ended")
        if owner.key != key:
            raise checks.refusal("a process", f"{process.pid} is not of VM {key}'s uid")
        if not any(word.startswith("memory-backend-memfd,") for word in owner.argv):
            raise no_memory(process)
        memory = os.memfd_create("memory-backend-memfd", os.MFD_CLOEXEC)
        try:
            return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(memory)

    async def vm_reap(self, key: str, process: ProcessId) -> int | None:
        checks.check_key(key)
        vm = self.vms.get(key)
        if vm is None or vm.id != process:
            return None
        if vm.code is None:
            raise HostError("vm-running", f"the VMM {process.pid} has not ended")
        return self.vms.pop(key).code

    async def vm_fence(self, key: str, until: float | None) -> None:
        checks.check_key(key)
        checks.check_moment(until, time.monotonic())
        if self._is_over(key) and key in self.vms and self.vms[key].code is None:
            raise fenced(key)
        self.fences.pop(key, None)
        if until is not None:
            self.fences[key] = until
            asyncio.get_running_loop().call_later(until - time.monotonic(), self._guard, key)

    def _guard(self, key: str) -> None:
        if self._is_over(key) and key in self.vms:
            self.end(key, -signals.SIGKILL)

    def _is_over(self, key: str) -> bool:
        return self.fences.get(key, math.inf) <= time.monotonic()

    async def cgroup_place(self, name: str, process: ProcessId) -> str:
        checks.check_cgroup_name(name)
        if not is_alive(process):
            raise HostError("no-process", f"the process {process.pid} has ended")
        self.placed[process] = name
        return CONFINEMENT

    async def listen(self, address: str, port: int) -> int:
        if Listener(address, port) not in self._configuration.listeners:
            raise checks.refusal("a listener", f"{address}:{port} was not given at its start")
        return listen(address, port)

    async def resolver_sockets(self) -> tuple[int, int]:
        self._bridge()
        return open_datagrams("127.0.0.1", 0), listen("127.0.0.1", 0)

    async def sweep(self, keep: Keep) -> Swept:
        kept = {key for key, process in keep.vms.items() if key in self.vms and self.vms[key].id == process}
        doomed = [vm for key, vm in self.vms.items() if key not in kept and vm.code is None]
        for vm in doomed:
            self.end(vm.key, -signals.SIGKILL)
        stays = {self._names.tap(key) for key in kept}
        taps = tuple(sorted(self.taps.keys() - stays))
        for name in taps:
            del self.taps[name]
        self.shapers &= {shaper_name(name) for name in stays}
        uids = tuple(sorted(self.uids.pop(key) for key in self.uids.keys() - kept))
        self.fences = {key: until for key, until in self.fences.items() if key in kept}
        return Swept(processes=tuple(vm.id.pid for vm in doomed), taps=taps, uids=uids)

    async def dismantle(self) -> None:
        left = [vm for vm in self.vms.values() if vm.code is None]
        if left:
            raise HostError("vms-left", f"{len(left)} processes of this installation still live")
        self.bridge = self.rules = None
        self.taps.clear()
        self.uids.clear()

    def _bridge(self) -> Bridge:
        if self.bridge is None:
            raise HostError("no-bridge", f"the bridge {self._names.bridge} is not there")
        return self.bridge
