"""What stands at every tap: programs that let in what is the VM's own, and count.

Theory. The best way that this kernel offers is tried out once, on a tap that is nobody's: tcx, else clsact. Where there is
neither the firewall's chain checks frames (`rules`), and none are counted. Whichever it is, it means the same: an interface
that the rules do not name may send nothing. So a tap gets its programs before it comes up, and its VM a place in
`identities` when the rules are applied; and it loses it with the rules too.

Taps that are there when a helper starts keep the programs and identities that an earlier one left, until the rules are
applied: then they get today's, without a gap.

A number of an interface may be given again, though late: what an earlier one of it left is removed when the rules are
applied, and its counts when a tap gets programs for the first time.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from socket import if_nameindex, if_nametoindex

from pyroute2.netlink.exceptions import NetlinkError

from plasmavmc.host.helper import ebpf_kernel as kernel
from plasmavmc.host.helper.ebpf_attach import Attachment, ClsactFilters, TcxLinks, remove_pins
from plasmavmc.host.helper.ebpf_programs import BPF_FILE_SYSTEM, TapPrograms, ensure_file_system, load_programs
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import DROP_REASONS, Guarding, Member
from plasmavmc.types import NetworkUsage

TCX, CLSACT, NFT = "tcx", "clsact", "nft"
_INTERFACE = struct.Struct("=I")
_IDENTITY = struct.Struct("=6s?x4s16s")
_TRAFFIC = struct.Struct(f"={4 + len(DROP_REASONS)}Q")
_MOST_INTERFACES = 8192
_POSSIBLE = Path("/sys/devices/system/cpu/possible")


@dataclass(frozen=True, slots=True)
class _Chosen:
    attachment: Attachment
    programs: TapPrograms


class TapGuard:
    """The programs at the taps of one installation. `ways` are those that may be used, best first."""

    def __init__(self, names: HostNames, ways: Sequence[str]) -> None:
        self._names = names
        self._ways = tuple(ways)
        self._pins = BPF_FILE_SYSTEM / f"swg-{names.key}"
        self._chosen: _Chosen | None = None
        self.tried = False
        self._lacks: list[str] = []
        self._guarded: set[int] = set()
        """Interfaces that have the programs of this helper's life."""
        self._known: dict[str, bytes] = {}
        """Identities in force, by tap."""
        self._held: dict[bytes, bytes] = {}
        """What the kernel's map of identities holds."""
        self._places: dict[str, bytes] = {}
        """Interfaces of taps that were given programs or identities, as the maps know them."""
        self._lingering: set[str] = set()
        """Taps that were there still when their VM left the rules."""

    def close(self) -> None:
        """Give up our descriptors; what is attached stays in force."""
        if self._chosen is not None:
            self._chosen.attachment.close()
            self._chosen.programs.close()
            self._chosen = None

    def told(self) -> Guarding:
        """How frames are checked, and why in no better way."""
        return Guarding(self._chosen.attachment.name if self._chosen else NFT, "; ".join(self._lacks))

    def choose(self, interface: int) -> None:
        """Find out what this kernel can, on an interface that is nobody's. Once in a helper's life."""
        if self.tried:
            return
        self.tried = True
        for way in self._ways:
            if way == NFT:
                return
            try:
                self._chosen = self._try(way, interface)
            except (OSError, NetlinkError) as error:
                self._lacks.append(f"{way}: {_reason(error)}")
            else:
                self._held = dict(self._read_identities(self._chosen.programs))
                return

    def _try(self, way: str, interface: int) -> _Chosen:
        pins: Path | None = self._pins
        try:
            ensure_file_system(Path("/proc/self/mounts").read_text())
        except OSError:
            if way == TCX:
                raise  # its links would end with this process
            pins = None
        programs = load_programs(pins)
        try:
            attachment = TcxLinks(self._pins) if way == TCX else ClsactFilters()
            try:
                attachment.attach(interface, programs)
            except BaseException:
                attachment.close()
                raise
        except BaseException:
            programs.close()
            raise
        return _Chosen(attachment, programs)

    def attach(self, tap: str, interface: int) -> None:
        """Let an interface that is not up yet send what its VM may; nothing, while no rule knows it.

        Raises:
            OSError, NetlinkError: it cannot be guarded, and must not come up.
        """
        if self._chosen is None:
            return
        key = _INTERFACE.pack(interface)
        self._move(tap, key)
        kernel.put(self._chosen.programs.traffic, key, bytes(_TRAFFIC.size * _processors()))
        self._admit(key, self._known.get(tap))
        self.prepare(interface)

    @property
    def takes_long(self) -> bool:
        """Whether an interface had better be prepared ahead."""
        return self._chosen is not None and self._chosen.attachment.takes_long

    def prepare(self, interface: int) -> None:
        """Attach programs that let nothing pass yet, where there are none of ours. Raises as `attach`."""
        if self._chosen is not None and interface not in self._guarded:
            self._chosen.attachment.attach(interface, self._chosen.programs)
            self._guarded.add(interface)

    def apply(self, members: Iterable[Member]) -> bool:
        """Let taps send as these members, and no other tap anything. Whether every tap that is there is guarded.

        Raises:
            OSError, NetlinkError: a tap that is there cannot be guarded.
        """
        self._known = {member.tap: identity_of(member) for member in members}
        if self._chosen is None:
            return False
        present = dict(if_nameindex())
        taps = {_INTERFACE.pack(index): name for index, name in present.items() if self._names.is_tap(name)}
        for key in self._held.keys() - taps.keys():
            self._admit(key, None)
        for key, tap in taps.items():
            self._admit(key, self._known.get(tap))
            self._guard_found(key)
        self._chosen.attachment.sweep()
        self._sweep_traffic(taps.keys())
        self._guarded &= present.keys()
        self._places = {tap: key for key, tap in taps.items()}
        self._lingering = self._places.keys() - self._known.keys()
        return True

    def change(self, coming: Iterable[Member], leaving: Iterable[Member]) -> bool:
        """As `apply`, where only these members are others than before: nothing is asked of the taps of all the rest."""
        left = {member.tap for member in leaving}
        for tap in left:
            self._known.pop(tap, None)
        come = {member.tap: identity_of(member) for member in coming}
        self._known |= come
        if self._chosen is None:
            return False
        for tap in left | come.keys() | self._lingering:
            self._follow(tap)
        return True

    def _follow(self, tap: str) -> None:
        """Let a tap send as its VM, if both are there; what one that has ended leaves is taken away."""
        interface = _index(tap)
        key = _INTERFACE.pack(interface)
        self._move(tap, key if interface else None)
        self._lingering.discard(tap)
        if interface:
            self._admit(key, self._known.get(tap))
            self._guard_found(key)
            if tap not in self._known:
                self._lingering.add(tap)

    def _move(self, tap: str, place: bytes | None) -> None:
        """A tap is this interface now; of the one that it was, which has ended, nothing stays."""
        before = self._places.pop(tap, None)
        if place is not None:
            self._places[tap] = place
        if before is None or before == place or self._chosen is None:
            return
        [interface] = _INTERFACE.unpack(before)
        self._admit(before, None)
        kernel.remove(self._chosen.programs.traffic, before)
        self._chosen.attachment.forget(interface)
        self._guarded.discard(interface)

    def _guard_found(self, key: bytes) -> None:
        """A tap of an earlier helper's life: from this frame on it has our programs."""
        [interface] = _INTERFACE.unpack(key)
        if self._chosen is None or interface in self._guarded:
            return
        counts = self._chosen.programs.traffic
        if kernel.look_up(counts, key, _TRAFFIC.size * _processors()) is None:
            kernel.put(counts, key, bytes(_TRAFFIC.size * _processors()))
        self.prepare(interface)

    def _admit(self, key: bytes, identity: bytes | None) -> None:
        if self._chosen is None or self._held.get(key) == identity:
            return
        if identity is None:
            kernel.remove(self._chosen.programs.identities, key)
            self._held.pop(key, None)
        else:
            kernel.put(self._chosen.programs.identities, key, identity)
            self._held[key] = identity

    def usage(self, tap: str) -> NetworkUsage | None:
        """What has passed a tap; None where there is none, or none is counted."""
        if self._chosen is None:
            return None
        key = _INTERFACE.pack(_index(tap))
        value = kernel.look_up(self._chosen.programs.traffic, key, _TRAFFIC.size * _processors())
        return None if value is None else counted(value)

    def remove(self) -> None:
        """Take away all that outlives the taps, which have ended: the installation has. What comes next begins anew."""
        self.close()
        self.tried = False
        self._lacks.clear()
        self._guarded.clear()
        self._known, self._held, self._places = {}, {}, {}
        self._lingering.clear()
        remove_pins(self._pins)

    def _sweep_traffic(self, present: Set[bytes]) -> None:
        """Remove the counts of taps that have ended."""
        if self._chosen is None:
            return
        counted = set(kernel.keys_of(self._chosen.programs.traffic, _INTERFACE.size, _MOST_INTERFACES))
        for key in counted - present:
            kernel.remove(self._chosen.programs.traffic, key)

    def _read_identities(self, programs: TapPrograms) -> Iterator[tuple[bytes, bytes]]:
        for key in kernel.keys_of(programs.identities, _INTERFACE.size, _MOST_INTERFACES):
            value = kernel.look_up(programs.identities, key, _IDENTITY.size)
            if value is not None:
                yield key, value


def identity_of(member: Member) -> bytes:
    """Who may send by a tap, as the programs read it."""
    mac = bytes.fromhex(member.mac.replace(":", ""))
    ipv6 = bytes(16) if member.ipv6 is None else member.ipv6.packed
    return _IDENTITY.pack(mac, member.ipv6 is not None, member.ipv4.packed, ipv6)


def counted(value: bytes) -> NetworkUsage:
    """The counts of all processors together."""
    each = _TRAFFIC.iter_unpack(value)
    transmit_packets, transmit_bytes, receive_packets, receive_bytes, *dropped = map(sum, zip(*each, strict=True))
    reasons = {reason: count for reason, count in zip(DROP_REASONS, dropped, strict=True) if count}
    return NetworkUsage(transmit_packets, transmit_bytes, receive_packets, receive_bytes, reasons)


def possible_processors(text: str) -> int:
    """How many processors a list as `0-3,8` counts."""
    ends = [part.partition("-") for part in text.strip().split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


@cache
def _processors() -> int:
    return possible_processors(_POSSIBLE.read_text())


def _index(name: str) -> int:
    with suppress(OSError):
        return if_nametoindex(name)
    return 0


def _reason(error: OSError | NetlinkError) -> str:
    return os.strerror(error.code) if isinstance(error, NetlinkError) else error.strerror or str(error)
