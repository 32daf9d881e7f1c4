"""The network of a node on a Linux bridge, by the privileged operations of `Host`.

Theory. The members in memory are the truth; each change of them is followed by the whole rule set, applied atomically.
Changes that arrive while a rule set is being applied share the next one, so that a hundred VMs started at once cost a few
loads and not a hundred. The rules of a VM are applied by `admit`, while its VMM comes up with its vCPUs held; a tap that no
rule knows yet lets no frame in, so that even a guest that ran too early could send nothing.

After a restart VMs run and we do not know them yet. Until they are adopted and `settle` is called, the rules that the last
life left in force stay as they are, also when one of them ends meanwhile: none is cut off while another is adopted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from ipaddress import IPv4Address, IPv4Network

from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Host, Peer, TapRequest
from plasmavmc.network.backend import Attachment
from plasmavmc.network.members import Members
from plasmavmc.types import NO_LIMIT, NetworkSpec


class BridgeNetwork:
    """`NetworkBackend` for Linux. `clock` is monotonic, in seconds."""

    def __init__(self, host: Host, names: HostNames, subnet: IPv4Network, clock: Callable[[], float]) -> None:
        self._host = host
        self._clock = clock
        self._members = Members(names, subnet)
        self._applying = asyncio.Lock()
        self._changed = 0
        self._applied = 0
        self._configured = False
        self._settled = False
        self._held_back: dict[str, str] = {}
        """Taps of VMs that may send at a rate only, by key: such a limit does not end with its tap."""
        self._cannot_limit = "its bridge is not configured yet"

    @property
    def cannot_limit(self) -> str:
        return self._cannot_limit

    async def configure_bridge(self) -> None:
        await self._host.bridge_ensure(self._members.bridge)
        self._cannot_limit = await self._host.limits_lack()
        self._configured = True
        if self._settled:
            await self._apply()
        await self._host.routes_apply(self._members.peers)

    async def setup_tap(self, key: str, spec: NetworkSpec, *, opened: bool = True) -> Attachment:
        async with AsyncExitStack() as undo:
            member = self._members.add(key, spec, self._clock())
            self._note_limits(key, member.tap, spec)
            undo.push_async_callback(self.release, key)
            tap = TapRequest(member.tap, member.mac, spec.receive.bytes_per_second, spec.transmit.bytes_per_second)
            fd = await self._host.tap_open(tap) if opened else -1
            undo.pop_all()
        return Attachment(key, member.tap, self._members.lease_of(member), fd)

    async def admit(self, key: str) -> None:
        await self._apply()

    async def adopt(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Attachment:
        member = self._members.claim(key, spec, ipv4)
        self._note_limits(key, member.tap, spec)
        return Attachment(key, member.tap, self._members.lease_of(member), -1)

    async def settle(self) -> None:
        await self._apply()

    async def connect(self, peers: Sequence[Peer]) -> tuple[Peer, ...]:
        self._members.peers = tuple(peers)
        if self._settled:
            await self._apply()
        return await self._host.routes_apply(self._members.peers) if self._configured else ()

    async def release(self, key: str) -> None:
        if self._members.remove(key, self._clock()) and self._settled:
            await self._apply()
        if tap := self._held_back.pop(key, ""):
            await self._host.tap_forget(tap)

    def _note_limits(self, key: str, tap: str, spec: NetworkSpec) -> None:
        if spec.transmit != NO_LIMIT:
            self._held_back[key] = tap

    async def _apply(self) -> None:
        """Return when rules that hold every change made so far are in force."""
        self._settled = True
        self._changed += 1
        wanted = self._changed
        async with self._applying:
            if self._applied >= wanted:
                return
            covers = self._changed
            await self._host.rules_apply(self._members.rules())
            self._applied = covers
