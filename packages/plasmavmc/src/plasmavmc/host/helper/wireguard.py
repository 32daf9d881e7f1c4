"""The encrypted tunnel to other nodes: WireGuard, by two devices whose keys are exchanged in turn (`host.rotation`).

Theory. Private keys are made here, and are in the devices and in this process alone: no file has them, and nobody is
told them. What other nodes need, the public keys, is what this module answers. On a device each other node is a peer
whose allowed IPs are exactly its networks: so no node can speak as another one, and whoever is no node is not heard at
all. That nothing bypasses the devices in clear is the firewall's work (`rules`).

Devices outlive the helper. The next helper takes their keys over, and reads the generation of each from the device's
alias (`ip link`). A device that has lost its key, because its program ended, gets the same one again; or a new one
where this helper does not know it, and then the other nodes have to be told.

By which of its two slots a node is reached, each node decides for itself at each look: see `rotation.chosen_slot`.

Source: wg(8), https://www.wireguard.com/papers/wireguard.pdf (6.1, cryptokey routing is section 2).
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from socket import if_nametoindex

from pyroute2 import IPRoute

from plasmavmc.errors import HostError
from plasmavmc.host import rotation
from plasmavmc.host.helper import wireguard_go, wireguard_kernel
from plasmavmc.host.helper.wireguard_device import Change, Devices, End, Sight, draw_key, public_key
from plasmavmc.host.helper.wireguard_go import WireguardGo
from plasmavmc.host.helper.wireguard_kernel import WireguardKernel
from plasmavmc.host.helper.wireguard_uapi import port_taken
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Peer, Reach, Underlay
from plasmavmc.host.rotation import SLOTS

OVERHEAD_BYTES = 80
"""WireGuard's own 32, UDP, and IPv6, by which it may go elsewhere: the same number everywhere, as wg-quick(8) has it."""
_LEAST_MTU, _USUAL_MTU = 1280, 1500 - OVERHEAD_BYTES
_TRIAL = "swg-try"
"""A device that is there for a moment; no installation's, for its dash."""


@dataclass(slots=True)
class _Slot:
    """What this process knows of a device."""

    private_key: str = field(repr=False)
    public_key: str
    generation: int
    used_at: float
    """When it was last seen that a route leads there."""
    port: int = 0
    ends: dict[str, End] = field(default_factory=dict)
    """Those that were set, by public key."""


class Tunnels:
    """The devices of one installation. `settle_s`: see `rotation.SETTLE_S`."""

    def __init__(self, ip: IPRoute, names: HostNames, program: WireguardGo, *, settle_s: float) -> None:
        self._ip = ip
        self._names = names
        self._program = program
        self._settle_s = settle_s
        self._devices: Devices | None = None
        self._slots: dict[int, _Slot] = {}
        self._ways: dict[str, int] = {}
        """The slot by which a node is reached, by its network."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Our public keys, by slot."""
        return tuple(self._slots[slot].public_key for slot in SLOTS) if self._slots else ()

    @property
    def encrypted_by(self) -> str:
        """Empty: nobody does."""
        return self._devices.name if self._devices is not None and self._slots else ""

    def keep(self, peers: Sequence[Peer], reach: Reach) -> None:
        """Have the devices as they should be now, with these nodes at their ends.

        Raises:
            HostError: `no-wireguard`, nobody here could encrypt; `port-taken`; or what the host refused.
        """
        devices = self._devices = self._devices or self._choose()
        for slot, port in zip(SLOTS, reach.ports, strict=True):
            self._ensure(devices, slot, port, reach.step)
        self._exchange(devices, reach.step)
        ends = [peer for peer in peers if is_end(peer)]
        for slot in SLOTS:
            self._set_ends(devices, slot, ends)
        self._choose_ways(ends, reach.step, [devices.look(self._name(slot)) for slot in SLOTS])

    def set_mtu(self, beneath: int) -> None:
        """Have whole datagrams fit into what lies beneath, of that MTU; 0: nobody knows."""
        mtu = max(beneath - OVERHEAD_BYTES, _LEAST_MTU) if beneath else _USUAL_MTU
        for slot in SLOTS:
            self._ip.link("set", index=if_nametoindex(self._name(slot)), mtu=mtu)

    def way_to(self, peer: Peer) -> int:
        """The index of the device by which a node is reached."""
        return if_nametoindex(self._name(self._ways[str(peer.network)]))

    def remove(self) -> None:
        """Take the devices away, whoever made them."""
        for slot in SLOTS:
            name = self._name(slot)
            self._program.remove(name)
            with suppress(OSError):
                self._ip.link("del", index=if_nametoindex(name))
        self._slots.clear()
        self._ways.clear()
        self._devices = None

    def _name(self, slot: int) -> str:
        return self._names.encrypted(slot)

    def _choose(self) -> Devices:
        """Those that are there already, else the kernel's, else the program's."""
        kind = self._link_kind(self._name(0))
        if kind == "tun":
            return self._program
        if kind == wireguard_kernel.KIND or who_encrypts(self._ip) == WireguardKernel.name:
            return WireguardKernel(self._ip)
        return self._program

    def _link_kind(self, name: str) -> str:
        for link in self._ip.get_links():
            if link.get_attr("IFLA_IFNAME") == name and (info := link.get_attr("IFLA_LINKINFO")) is not None:
                return str(info.get_attr("IFLA_INFO_KIND"))
        return ""

    # Keys

    def _ensure(self, devices: Devices, slot: int, port: int, step: int) -> None:
        name, known = self._name(slot), self._slots.get(slot)
        if known is None and not self._link_kind(name):
            _check_port(port)
        if not devices.ensure(name):
            self._begin(devices, slot, port, step)
        elif known is None:
            self._adopt(devices, slot, port, step)
        elif known.port != port:
            devices.change(name, Change(port=port))
            known.port = port

    def _begin(self, devices: Devices, slot: int, port: int, step: int) -> None:
        """Give a fresh device a key: that which it had, if it is known."""
        known = self._slots.pop(slot, None)
        if known is None:
            private = draw_key()
            known = _Slot(private, public_key(private), rotation.first_generation(step, slot), time.monotonic())
        devices.change(self._name(slot), Change(known.private_key, port))
        self._note_generation(slot, known.generation)
        known.port, known.ends = port, {}
        self._slots[slot] = known

    def _adopt(self, devices: Devices, slot: int, port: int, step: int) -> None:
        sight = devices.look(self._name(slot))
        if not sight.private_key:
            self._begin(devices, slot, port, step)
            return
        if sight.port != port:
            devices.change(self._name(slot), Change(port=port))
        generation = self._noted_generation(slot, rotation.first_generation(step, slot))
        self._slots[slot] = _Slot(sight.private_key, public_key(sight.private_key), generation, time.monotonic(), port)

    def _exchange(self, devices: Devices, step: int) -> None:
        """Give the slot that is not in use the next key, where it is time."""
        following = rotation.next_generation(step, [self._slots[slot].generation for slot in SLOTS])
        slot = 1 - rotation.slot_in_use(step)
        known = self._slots[slot]
        if following is None or time.monotonic() - known.used_at < self._settle_s:
            return
        private, name = draw_key(), self._name(slot)
        devices.change(name, Change(gone=tuple(devices.look(name).handshakes)))
        devices.change(name, Change(private))
        self._note_generation(slot, following)
        self._slots[slot] = _Slot(private, public_key(private), following, known.used_at, known.port)

    def _note_generation(self, slot: int, generation: int) -> None:
        self._ip.link("set", index=if_nametoindex(self._name(slot)), ifalias=f"generation {generation}")

    def _noted_generation(self, slot: int, otherwise: int) -> int:
        [link] = self._ip.get_links(if_nametoindex(self._name(slot)))
        words = str(link.get_attr("IFLA_IFALIAS") or "").split()
        with suppress(ValueError, IndexError):
            return int(words[1])
        return otherwise

    # Ends

    def _set_ends(self, devices: Devices, slot: int, peers: Sequence[Peer]) -> None:
        known, name = self._slots[slot], self._name(slot)
        wanted = {peer.keys[slot]: _end(peer, slot) for peer in peers if peer.keys[slot] != known.public_key}
        present = devices.look(name).handshakes
        gone = tuple(key for key in present if key not in wanted)
        fresh = {key: end for key, end in wanted.items() if key not in present or known.ends.get(key) != end}
        if gone or fresh:
            devices.change(name, Change(gone=gone, ends=fresh))
        known.ends = wanted

    def _choose_ways(self, peers: Sequence[Peer], step: int, sights: Sequence[Sight]) -> None:
        now, ways = time.time(), {}
        for peer in peers:
            ages = [_age(sight.handshakes, peer.keys[slot], now) for slot, sight in enumerate(sights)]
            network = str(peer.network)
            ways[network] = rotation.chosen_slot(step, ages, self._ways.get(network))
        self._ways = ways
        for slot in set(ways.values()):
            self._slots[slot].used_at = time.monotonic()


def who_encrypts(ip: IPRoute) -> str:
    """By whom WireGuard would be on this host: `kernel`, or the slower `wireguard-go`.

    Raises:
        HostError: `no-wireguard`, by nobody.
    """
    if wireguard_kernel.available(ip, _TRIAL):
        return WireguardKernel.name
    if wireguard_go.available():
        return WireguardGo.name
    raise HostError(
        "no-wireguard",
        "neither has this host's kernel WireGuard, nor is wireguard-go installed, and nothing is sent in clear instead",
        resolution="modprobe wireguard (Linux 5.6 or later), or: apt-get install wireguard-go",
    )


def is_end(peer: Peer) -> bool:
    """Whether a node can be reached by WireGuard."""
    return peer.underlay is Underlay.WIREGUARD and len(peer.keys) == len(SLOTS) and peer.port > 0


def _end(peer: Peer, slot: int) -> End:
    private = () if peer.private is None else (peer.private,)
    return End(peer.via, peer.port + slot, (peer.network, *private))


def _age(handshakes: Mapping[str, float], key: str, now: float) -> float | None:
    at = handshakes.get(key)
    return now - at if at else None


def _check_port(port: int) -> None:
    """The program tells nobody where it could not listen."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise port_taken(port) from error
            raise
