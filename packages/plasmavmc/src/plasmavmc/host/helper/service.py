"""The operations on this host, for one installation: check, then do.

Each request type of `host.protocol` has one method here. Whatever the host refuses is a `HostError` with what it said.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import singledispatchmethod
from pathlib import Path
from typing import NamedTuple

from plasmavmc.errors import HostError
from plasmavmc.host import protocol
from plasmavmc.host.configuration import HelperConfiguration, Listener
from plasmavmc.host.helper import argv, checks, worker
from plasmavmc.host.helper.cgroups import find_cgroups
from plasmavmc.host.helper.ebpf_guard import TapGuard
from plasmavmc.host.helper.enforcement import Enforcement
from plasmavmc.host.helper.fences import Fences, fenced
from plasmavmc.host.helper.guest_memory import open_guest_memory
from plasmavmc.host.helper.jails import HelperJails, JailPrograms, check_files
from plasmavmc.host.helper.links import Links
from plasmavmc.host.helper.programs import check_program
from plasmavmc.host.helper.routes import Routes
from plasmavmc.host.helper.run_root import prepare_run_root
from plasmavmc.host.helper.seats import Seats
from plasmavmc.host.helper.sockets import listen, open_datagrams
from plasmavmc.host.helper.sweep import Sweeper
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.helper.vm_groups import VmGroups
from plasmavmc.host.helper.vmms import Vmms
from plasmavmc.host.helper.zfs import HelperZfs
from plasmavmc.host.names import shaper_name
from plasmavmc.host.operations import PLACED_LIMITS, RESOLVER_PORT, Bridge, Guarding
from plasmavmc.host.processes import held, is_alive, processes, uids_of


class Answer(NamedTuple):
    """What goes back: a value, and descriptors, which are closed once they are sent."""

    value: object = None
    fds: tuple[int, ...] = ()


class Helper:
    """The operations on this host, for one installation."""

    def __init__(self, configuration: HelperConfiguration) -> None:
        prepare_run_root(configuration)
        self._configuration = configuration
        self._names = configuration.names
        self._guard = TapGuard(self._names, configuration.guards)
        self._links = Links(self._guard)
        self._enforcement = Enforcement(self._names, configuration.publish, self._links, self._guard)
        self._cgroups = find_cgroups(self._names.cgroup)
        self._uids = Uids(configuration.run_root / "uids", configuration.key, configuration.vm_uids)
        self._fences = Fences(configuration.run_root, configuration.key)
        self._groups = VmGroups(self._names, self._cgroups, self._uids)
        self._seats = Seats(self._names, self._cgroups, self._uids)
        self._routes = Routes(
            self._links,
            self._names,
            self._cgroups,
            self._uids,
            configuration.run_root,
            settle_s=configuration.key_settle_s,
        )
        self._sweeper = Sweeper(
            self._names, self._links, self._cgroups, self._uids, self._groups, configuration.run_root
        )
        self._jails = HelperJails(
            configuration.jail_root,
            self._names,
            JailPrograms(configuration.jailer, configuration.firecracker),
            configuration.uid,
            configuration.gid,
        )
        self._zfs = HelperZfs(
            configuration.zfs,
            self._names.dataset,
            configuration.run_root / "zfs",
            configuration.uid,
            configuration.gid,
        )
        self._vmms = Vmms(
            configuration,
            links=self._links,
            cgroups=self._cgroups,
            uids=self._uids,
            groups=self._groups,
            seats=self._seats,
            fences=self._fences,
            jails=self._jails,
            sweeper=self._sweeper,
        )
        self._bridge: Bridge | None = None
        """As it was made or found last."""

    @property
    def watched(self) -> frozenset[int]:
        """Descriptors that can be read when there is something to collect."""
        return self._vmms.pidfds | self._seats.pidfds | self._routes.watched

    def close(self) -> None:
        self._seats.dismiss_all()
        self._routes.close()
        self._links.close()
        self._guard.close()
        self._vmms.close()

    def collect(self) -> None:
        """Reap the VMMs, seats and tunnels that have ended."""
        self._seats.collect()
        self._routes.collect()
        self._vmms.collect()

    def answer(self, request: protocol.Request, fds: tuple[int, ...]) -> Answer:
        """Do what is asked.

        Raises:
            HostError, UnavailableError: it was refused, or the host cannot do it.
        """
        if isinstance(request, protocol.VmSpawn):
            return self._vm_spawn(request, fds)
        if isinstance(request, protocol.JailPrepare):
            return self._jail_prepare(request, fds)
        return self._do(request)

    @singledispatchmethod
    def _do(self, request: object) -> Answer:
        raise checks.refusal("a request", f"{type(request).__name__} is unknown")

    @_do.register
    def _(self, request: protocol.BridgeEnsure) -> Answer:
        checks.check_bridge(self._names, request.bridge)
        with self._host_locked():
            lack = self._links.ensure_bridge(request.bridge)
        self._guarding()
        self._bridge = request.bridge
        return Answer(lack)

    @_do.register
    def _(self, request: protocol.NetworksInUse) -> Answer:
        return Answer(tuple(sorted(self._links.networks(besides=self._names.bridge))))

    @_do.register
    def _(self, request: protocol.RoutesApply) -> Answer:
        checks.check_peers(request.peers)
        checks.check_reach(request.reach)
        return Answer(self._routes.set(request.peers, request.reach))

    @_do.register
    def _(self, request: protocol.RulesApply) -> Answer:
        self._enforcement.apply(request.rules)
        return Answer()

    @_do.register
    def _(self, request: protocol.RulesChange) -> Answer:
        self._enforcement.change(request)
        return Answer()

    @_do.register
    def _(self, request: protocol.RulesFault) -> Answer:
        return Answer(self._enforcement.fault())

    @_do.register
    def _(self, request: protocol.TapOpen) -> Answer:
        checks.check_tap(self._names, request.tap)
        return Answer(fds=(self._links.open_tap(request.tap, self._names.bridge),))

    @_do.register
    def _(self, request: protocol.TapMake) -> Answer:
        return Answer(self._links.make_ahead(f"{self._names.link_prefix}next"))

    @_do.register
    def _(self, request: protocol.TapForget) -> Answer:
        checks.check_tap_name(self._names, request.name)
        self._links.delete(shaper_name(request.name))
        return Answer()

    @_do.register
    def _(self, request: protocol.LimitsLack) -> Answer:
        return Answer(self._links.lack_of_limits(f"{self._names.link_prefix}try"))

    @_do.register
    def _(self, request: protocol.TapsGuarding) -> Answer:
        return Answer(self._guarding())

    @_do.register
    def _(self, request: protocol.TapsUsage) -> Answer:
        for name in request.names:
            checks.check_tap_name(self._names, name)
        return Answer(self._enforcement.usage(request.names))

    @_do.register
    def _(self, request: protocol.UidTake) -> Answer:
        checks.check_key(request.key)
        held = request.key in self._uids.keys
        uid = self._seats.take(request.key) if request.seat and not held else None
        return Answer(self._uids.take(request.key) if uid is None else uid)

    @_do.register
    def _(self, request: protocol.UidFree) -> Answer:
        checks.check_key(request.key)
        if self._jails.has(request.key):
            raise checks.refusal("to free a uid", f"VM {request.key} has a jail still, whose files are that uid's")
        self._seats.dismiss(request.key)
        self._fences.lift(request.key)
        self._uids.free(request.key)
        return Answer()

    @_do.register
    def _(self, request: protocol.SeatMake) -> Answer:
        self._seats.make(self._vmms.kind(kvm=request.kvm))
        return Answer()

    @_do.register
    def _(self, request: protocol.VmLimit) -> Answer:
        checks.check_key(request.key)
        checks.check_limits(request.limits)
        group = self._groups.find(request.key)
        if group is None or not self._vmms.runs(request.key):
            raise checks.refusal("limits", f"{request.key} has no running VM")
        self._cgroups.make(group, request.limits)
        return Answer()

    @_do.register
    def _(self, request: protocol.VmSignal) -> Answer:
        checks.check_key(request.key)
        checks.check_signal(request.signal)
        uid = self._uids.of(request.key)
        with held(request.process) as pidfd:
            if pidfd is None:
                return Answer(False)
            self._vmms.check_is_of(request.key, uid, request.process.pid)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, request.signal)
        return Answer(True)

    @_do.register
    def _(self, request: protocol.VmMemory) -> Answer:
        checks.check_key(request.key)
        uid = self._uids.of(request.key)
        with held(request.process) as pidfd:
            if pidfd is None:
                raise HostError("no-process", f"the process {request.process.pid} has ended")
            self._vmms.check_is_of(request.key, uid, request.process.pid)
            return Answer(fds=(open_guest_memory(request.process),))

    @_do.register
    def _(self, request: protocol.VmReap) -> Answer:
        checks.check_key(request.key)
        self.collect()
        return Answer(self._vmms.reap(request.key, request.process))

    @_do.register
    def _(self, request: protocol.VmFence) -> Answer:
        checks.check_key(request.key)
        checks.check_moment(request.until, time.monotonic())
        if self._fences.is_over(request.key) and self._vmms.runs(request.key):
            raise fenced(request.key)
        if request.until is None:
            self._fences.lift(request.key)
        else:
            self._fences.set(request.key, request.until)
        return Answer()

    @_do.register
    def _(self, request: protocol.JailOpen) -> Answer:
        checks.check_key(request.key)
        return Answer(fds=(self._jails.open(request.key),))

    @_do.register
    def _(self, request: protocol.JailSpawn) -> Answer:
        checks.check_key(request.key)
        checks.check_limits(request.limits)
        if request.tap is not None:
            checks.check_own_tap(self._names, request.key, request.tap)
        return Answer(*self._vmms.start_jailed(request))

    @_do.register
    def _(self, request: protocol.JailRemove) -> Answer:
        checks.check_key(request.key)
        self._vmms.refuse_running(request.key)
        if self._jails.has(request.key):
            self._links.delete(self._names.tap(request.key))  # else it ends a moment later, with its namespace
            self._jails.remove(request.key)
        return Answer()

    @_do.register
    def _(self, request: protocol.CgroupPlace) -> Answer:
        checks.check_cgroup_name(request.name)
        with held(request.process) as pidfd:
            if pidfd is None:
                raise HostError("no-process", f"the process {request.process.pid} has ended")
            if uids_of(request.process.pid) != {self._configuration.uid}:
                raise checks.refusal("a process", f"{request.process.pid} is not of uid {self._configuration.uid}")
            self._place(request.name, request.process.pid)
        return Answer(self._cgroups.confinement)

    @_do.register
    def _(self, request: protocol.Listen) -> Answer:
        if Listener(request.address, request.port) not in self._configuration.listeners:
            raise checks.refusal("a listener", f"{request.address!r:.60}:{request.port} was not given at its start")
        return Answer(fds=(listen(request.address, request.port),))

    @_do.register
    def _(self, request: protocol.ResolverSockets) -> Answer:
        """Nothing of it is the caller's to choose: the address is the bridge's own, the port that of DNS."""
        if self._bridge is None:
            raise HostError("no-bridge", f"the bridge {self._names.bridge} is not there")
        address = str(self._bridge.gateway)
        datagrams = open_datagrams(address, RESOLVER_PORT)
        try:
            return Answer(fds=(datagrams, listen(address, RESOLVER_PORT)))
        except HostError:
            os.close(datagrams)
            raise

    @_do.register
    def _(self, request: protocol.ZfsOpen) -> Answer:
        return Answer(self._zfs.open())

    @_do.register
    def _(self, request: protocol.ZfsLook) -> Answer:
        return Answer(fds=(self._zfs.look(),))

    @_do.register
    def _(self, request: protocol.ZfsDo) -> Answer:
        self._zfs.do(request.order)
        return Answer()

    @_do.register
    def _(self, request: protocol.Sweep) -> Answer:
        for key in request.keep.vms:
            checks.check_key(key)
        self._seats.dismiss_all()
        with self._host_locked():
            swept = self._sweeper.sweep(request.keep, self._routes.processes)
            kept = {key for key, process in request.keep.vms.items() if is_alive(process)}
            kept |= {each.key for each in swept.unkillable}
            for key in self._jails.keys() - kept:
                self._jails.remove(key)
            self._fences.keep(kept)
        self.collect()
        return Answer(swept)

    @_do.register
    def _(self, request: protocol.Dismantle) -> Answer:
        self._seats.dismiss_all()
        left = self._sweeper.living() - self._routes.processes
        if left:
            raise HostError(
                "vms-left",
                f"{len(left)} processes of this installation still live",
                resolution="stop its VMs and its HAProxy first",
            )
        self._enforcement.remove()
        self._links.drop_waiting()
        self._routes.leave()
        self._sweeper.remove_links()
        self._guard.remove()
        for name in self._cgroups.children():
            self._cgroups.remove(name)
        self._cgroups.remove_parent()
        self._jails.remove_base()
        self._zfs.close()
        self._fences.remove()
        for key in self._uids.keys:
            self._uids.free(key)
        shutil.rmtree(self._names.run_dir(self._configuration.run_root), ignore_errors=True)
        return Answer()

    def _guarding(self) -> Guarding:
        return self._links.guarding(f"{self._names.link_prefix}try")

    def _vm_spawn(self, request: protocol.VmSpawn, fds: tuple[int, ...]) -> Answer:
        checks.check_key(request.key)
        checks.check_limits(request.limits)
        checks.check_fd_names(request.fds)
        if len(fds) != len(request.fds):
            raise checks.refusal("descriptors", f"{len(fds)} came for {len(request.fds)} names")
        argv.check_argv(
            request.argv,
            process_name=self._names.process(request.key),
            vmms=self._configuration.vmms,
            fds=request.fds,
        )
        for program in worker.programs() if worker.is_worker(request.argv) else (Path(request.argv[0]),):
            check_program(program)
        self._vmms.refuse_running(request.key)
        return Answer(*self._vmms.start(request, fds))

    def _jail_prepare(self, request: protocol.JailPrepare, fds: tuple[int, ...]) -> Answer:
        checks.check_key(request.key)
        check_files(request.files, len(fds))
        uid = self._uids.of(request.key)
        self._vmms.refuse_running(request.key)
        return Answer(fds=(self._jails.prepare(request.key, uid, dict(zip(request.files, fds, strict=True))),))

    def _place(self, name: str, pid: int) -> None:
        """Move a process and what it started in its session; what it starts later is born there."""
        joins = self._cgroups.make(name, PLACED_LIMITS.get(name))
        for member in [process.id for process in processes() if pid in (process.session, process.id.pid)]:
            with held(member) as pidfd:
                if pidfd is not None and uids_of(member.pid) == {self._configuration.uid}:
                    for join in joins:
                        with suppress(ProcessLookupError):
                            join.write_text(str(member.pid))

    @contextmanager
    def _host_locked(self) -> Iterator[None]:
        """One helper of this host at a time: between a look at what others use and the change that relies on it."""
        fd = os.open(self._configuration.run_root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
