"""WireGuard by a program, `wireguard-go`, where the kernel has none.

Theory. The helper makes the device (a tun that stays), brings it up, and listens on the socket by which the program is
configured, in a directory that is root's alone. The program gets both as descriptors and starts as a leased uid without any
privilege, in a session, a cgroup and a cage of its own: of the host it has the network, for its datagrams, and nothing else
(`seccomp`). So its keys are in its memory and in the helper's, and whoever would configure it has to be root.

It outlives the helper, as VMMs do. The next helper finds it by its uid, which is leased to it and to nobody else, and asks
it for the key. Where it has ended, its device and the routes into it are still there, so packets for other nodes are dropped
meanwhile and never take another way; another one is started, and is told what the helper knows.

Traps:
- It ends when a file at `/var/run/wireguard/<device>.sock` is removed, or is not there: the cage has one.
- It sets its device's MTU, which takes a privilege; the filter answers that call without making it.
- Go ends a program that writes to a closed stderr, and waits for a full one: its words are datagrams, which are read.
- One that is stopped answers nothing, and holds the device: it is ended, and started anew.
- Before March 2023 it takes packets with a header of protocol information, afterwards with one of virtio, and never asks
  which the device has; its version number does not tell.

Source: https://git.zx2c4.com/wireguard-go/about/, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from plasmavmc.errors import HostError
from plasmavmc.host.helper import seccomp, spawn
from plasmavmc.host.helper.cage import VmmCage
from plasmavmc.host.helper.cgroups import NONE, Cgroups
from plasmavmc.host.helper.netlink import TUN
from plasmavmc.host.helper.programs import check_program
from plasmavmc.host.helper.tunnel_device import prepare_tunnel
from plasmavmc.host.helper.uids import Uids
from plasmavmc.host.helper.wireguard_device import Change, Sight
from plasmavmc.host.helper.wireguard_uapi import LOOK, converse, sight_of, words_of
from plasmavmc.host.operations import Limits, ProcessId
from plasmavmc.host.processes import is_alive, kill, processes, uids_of
from plasmavmc.types import MIB

PROGRAM = Path("/usr/bin/wireguard-go")
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_OF_A_NEWER_ONE = b"unsupported virtio GSO type"
"""A message of it."""
_LIMITS = Limits(1024 * MIB, (os.cpu_count() or 1) * 1000, 256)
"""It has all CPUs; of memory more than its queues ever hold."""
_KILL_WAIT_S = 5.0
_WORDS_BYTES = 2000
_QUEUE = 16


@dataclass(frozen=True, slots=True)
class TunnelCage:
    """Where the program lives: as a VMM does, but with the host's network, and a filter of what it may ask there."""

    place: Path
    device: str

    def enter(self) -> None:
        watched = Path("/var/run/wireguard") / f"{self.device}.sock"
        VmmCage(self.place, networked=True, files=(watched,)).enter()
        seccomp.install(seccomp.tunnel_filter(seccomp.own_calls()))


@dataclass(slots=True)
class _Running:
    """One process. `output` is where it speaks to, -1 where an earlier helper heard it."""

    process: ProcessId
    pidfd: int
    output: int = -1
    words: bytes = b""

    def listen(self) -> None:
        """Take what it has said; the last of it is kept."""
        with suppress(BlockingIOError):
            while self.output >= 0 and (said := os.read(self.output, _WORDS_BYTES)):
                self.words = (self.words + said)[-_WORDS_BYTES:]


class WireguardGo:
    """`Devices` of one installation, each by a process."""

    name = "wireguard-go"

    def __init__(self, ip: IPRoute, cgroups: Cgroups, uids: Uids, run_root: Path) -> None:
        self._ip = ip
        self._cgroups = cgroups
        self._uids = uids
        self._run_root = run_root
        self._running: dict[str, _Running] = {}

    @property
    def watched(self) -> frozenset[int]:
        """Descriptors that can be read when a process has ended, or has said something."""
        ends = [(each.pidfd, each.output) for each in self._running.values()]
        return frozenset(fd for pair in ends for fd in pair if fd >= 0)

    def collect(self) -> None:
        """Hear those that live, and reap those that have ended."""
        for device, running in list(self._running.items()):
            running.listen()
            if not is_alive(running.process):
                self._forget(device)

    def close(self) -> None:
        """Let go of them; they live on."""
        for running in self._running.values():
            _close(running)
        self._running.clear()

    def process_of(self, device: str) -> ProcessId | None:
        """Whoever runs as the uid that is leased to a device."""
        running = self._running.get(device)
        if running is not None:
            return running.process if is_alive(running.process) else None
        if device not in self._uids.keys:
            return None
        uid = self._uids.of(device)
        return next((each.id for each in processes() if uids_of(each.id.pid) == {uid}), None)

    # Devices

    def ensure(self, device: str) -> bool:
        found = self.process_of(device)
        if found is None:
            self._forget(device)
            self._start(device)
            return False
        if device not in self._running:
            self._running[device] = _Running(found, os.pidfd_open(found.pid))
        return True

    def look(self, device: str) -> Sight:
        with self._answering(device):
            return sight_of(converse(self._socket(device), LOOK))

    def change(self, device: str, change: Change) -> None:
        with self._answering(device):
            converse(self._socket(device), words_of(change))

    def remove(self, device: str) -> None:
        process = self.process_of(device)
        if process is not None and not kill(process, _KILL_WAIT_S):
            raise HostError("unkillable", f"process {process.pid} is still there {_KILL_WAIT_S:g} s after SIGKILL")
        self._forget(device)
        self._socket(device).unlink(missing_ok=True)
        self._cgroups.remove(_group(device))
        self._uids.free(device)
        if index := _index(device):
            self._ip.link("del", index=index)

    @contextmanager
    def _answering(self, device: str) -> Iterator[None]:
        """Who does not answer is ended, so that the next look starts another."""
        try:
            yield
        except HostError as error:
            process = self.process_of(device)
            if process is not None and error.code == "wireguard-silent":
                kill(process, _KILL_WAIT_S)
            raise

    def _start(self, device: str) -> None:
        _check_program()
        uid = self._uids.take(device)
        tun = _open_tun(device)
        try:
            prepare_tunnel(self._ip, device)
            self._ip.link("set", index=_index(device), state="up")
            with self._listening(device) as listener:
                started = self._spawn(device, uid, (tun, listener.fileno()))
        finally:
            os.close(tun)
        os.set_blocking(started.stdout, False)
        self._running[device] = _Running(started.process, started.pidfd, started.stdout)
        try:
            self.look(device)
        except HostError as error:
            running = self._running[device]
            running.listen()
            said = running.words.decode(errors="replace").strip()
            raise HostError("wireguard-spawn", f"{PROGRAM} was started and ended", details=said) from error

    def _spawn(self, device: str, uid: int, fds: tuple[int, int]) -> spawn.Started:
        joins = self._cgroups.make(_group(device), _LIMITS)
        confined = self._cgroups.confinement != NONE
        tun, listener = range(spawn.FIRST_DESCRIPTOR, spawn.FIRST_DESCRIPTOR + len(fds))
        environment = {
            "WG_TUN_FD": str(tun),
            "WG_UAPI_FD": str(listener),
            "WG_PROCESS_FOREGROUND": "1",
            "LOG_LEVEL": "error",
        }
        program = spawn.Program(
            (str(PROGRAM), "--foreground", device),
            spawn.Identity(uid, uid),
            fds,
            joins,
            spawn.rlimits_for(_LIMITS, confined=confined, maps_freely=True),
            datagrams=True,
            cage=TunnelCage(self._run_root, device),
            environment=environment,
        )
        try:
            return spawn.start(program)
        except HostError as error:
            raise HostError("wireguard-spawn", f"{PROGRAM}: {error.brief}", details=error.details) from error

    @contextmanager
    def _listening(self, device: str) -> Iterator[socket.socket]:
        path = self._socket(device)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.bind(str(path))
            listener.listen(_QUEUE)
            yield listener

    def _socket(self, device: str) -> Path:
        return self._run_root / "wireguard" / f"{device}.sock"

    def _forget(self, device: str) -> None:
        running = self._running.pop(device, None)
        if running is not None:
            with suppress(ChildProcessError):  # an earlier helper's child is init's by now
                os.waitpid(running.process.pid, os.WNOHANG)
            _close(running)


def available() -> bool:
    """Whether the program is there, and root's."""
    try:
        _check_program()
    except HostError:
        return False
    return True


def tun_flags(program: bytes) -> int:
    """What a device has to be for this program."""
    return _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR if _OF_A_NEWER_ONE in program else _IFF_TUN


def _check_program() -> None:
    check_program(PROGRAM, "WireGuard's program")


def _group(device: str) -> str:
    """With a dash, which no name that the platform may give to a cgroup has."""
    return f"wireguard-{device}"


def _close(running: _Running) -> None:
    for fd in (running.pidfd, running.output):
        if fd >= 0:
            os.close(fd)


def _open_tun(device: str) -> int:
    """A descriptor of the device, which is made where it is missing, and stays when nobody has any."""
    flags = tun_flags(PROGRAM.read_bytes())
    try:
        fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostError("host-network", f"{TUN}: {error.strerror}", resolution="modprobe tun") from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        os.close(fd)
        held = "somebody else holds it" if error.errno == errno.EBUSY else error.strerror
        raise HostError("host-network", f"the device {device}: {held}") from error
    return fd


def _index(device: str) -> int:
    """0: there is none."""
    with suppress(OSError):
        return socket.if_nametoindex(device)
    return 0
