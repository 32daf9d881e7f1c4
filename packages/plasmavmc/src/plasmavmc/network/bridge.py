"""The network of a node on a Linux bridge, by the privileged operations of `Host`.

Theory. The members in memory are the truth; each change of them is followed by the whole rule set, applied atomically.
Changes that arrive while a rule set is being applied share the next one, so that a hundred VMs started at once cost a few
loads and not a hundred. The rules of a VM are applied by `admit`, while its VMM comes up with its vCPUs held; a tap that no
rule knows yet lets no frame in, so that even a guest that ran too early could send nothing.

After a restart VMs run and we do not know them yet. Until they are adopted and `settle` is called, the rules that the last
life left in force stay as they are, also when one of them ends meanwhile: none is cut off while another is adopted.

Where nodes are reached by WireGuard the rules hold for all of them, also for those to which there is no way: they keep in
what would go there in clear.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from plasmavmc.host.idle import IDLE_S, WhenIdle
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import PLAINLY, Guarding, Host, Peer, Reach, Routed, Source, TapRequest
from plasmavmc.host.ports import NOTHING_PUBLISHED, PublishedPort, PublishSite
from plasmavmc.network.addressbook import AddressBook
from plasmavmc.network.backend import NO_NAMES, Attachment, NameService
from plasmavmc.network.members import Members
from plasmavmc.policy import Egress, Ingress
from plasmavmc.types import NO_LIMIT, NetworkSpec, NetworkUsage


class BridgeNetwork:
    """`NetworkBackend` for Linux. `clock` is monotonic, in seconds; so long after the last VM a tap is made ahead. `publish`
    is as the root helper was told. Each VM may have so many `connections` (`network.limits`); 0: any number. Edges of the
    platform listen at `web_port`; 0: at those of the web only. `book` remembers addresses over restarts."""

    def __init__(
        self,
        host: Host,
        names: HostNames,
        subnet: IPv4Network,
        clock: Callable[[], float],
        resolver: NameService = NO_NAMES,
        *,
        reach: Reach = PLAINLY,
        publish: PublishSite = NOTHING_PUBLISHED,
        idle_s: float = IDLE_S,
        connections: int = 0,
        web_port: int = 0,
        book: AddressBook | None = None,
    ) -> None:
        self._host = host
        self._reach = reach
        self._publish = publish
        self._resolver = resolver
        self._clock = clock
        self._members = Members(names, subnet, book, web_port)
        self._members.reach = reach
        self._routed = Routed()
        self._members.connections = connections
        self._applying = asyncio.Lock()
        self._changed = 0
        self._applied = 0
        self._configured = False
        self._settled = False
        self._held_back: dict[str, str] = {}
        """Taps of VMs that may send at a rate only, by key: such a limit does not end with its tap."""
        self._cannot_limit = "its bridge is not configured yet"
        self._guarding = Guarding("nft", self._cannot_limit)
        self._ahead = WhenIdle("tap", idle_s)

    @property
    def cannot_limit(self) -> str:
        return self._cannot_limit

    @property
    def guarding(self) -> Guarding:
        return self._guarding

    @property
    def keys(self) -> tuple[str, ...]:
        return self._routed.keys

    @property
    def encrypted_by(self) -> str:
        return self._routed.encrypted_by

    @property
    def lacks_ipv6(self) -> str:
        return self._members.lacks_ipv6

    @property
    def unrecognized(self) -> int:
        return self._members.unrecognized

    async def usage(self, keys: Collection[str]) -> Mapping[str, NetworkUsage]:
        taps = {tap: key for key in keys if (tap := self._members.tap_of(key))}
        used = await self._host.taps_usage(tuple(taps)) if taps else {}
        return {taps[tap]: each for tap, each in used.items()}

    async def configure_bridge(self) -> None:
        self._members.lacks_ipv6 = await self._host.bridge_ensure(self._members.bridge)
        self._guarding = await self._host.taps_guarding()
        self._cannot_limit = await self._host.limits_lack()
        self._configured = True
        self._ahead.later(self._host.tap_make)
        if self._settled:
            await self._apply()
        await self._route()

    async def make_room(self, spec: NetworkSpec) -> None:
        self._ahead.put_off()
        await self._members.make_room(spec)

    async def setup_tap(self, key: str, spec: NetworkSpec, *, opened: bool = True) -> Attachment:
        self._ahead.put_off()
        async with AsyncExitStack() as undo:
            member = self._members.add(key, spec)
            self._note_limits(key, member.tap, spec)
            undo.push_async_callback(self.release, key)
            if self._settled:
                self._resolver.admit(self._members.by_key)
            tap = TapRequest(member.tap, member.mac, spec.receive.bytes_per_second, spec.transmit.bytes_per_second)
            fd = await self._host.tap_open(tap) if opened else -1
            undo.pop_all()
        return Attachment(key, member.tap, self._members.lease_of(member), fd)

    async def admit(self, key: str) -> None:
        await self._apply()
        self._ahead.later(self._host.tap_make)

    async def adopt(self, key: str, spec: NetworkSpec, ipv4: IPv4Address) -> Attachment:
        member = self._members.claim(key, spec, ipv4)
        self._note_limits(key, member.tap, spec)
        return Attachment(key, member.tap, self._members.lease_of(member), -1)

    async def settle(self) -> None:
        await self._apply()

    async def heal(self) -> str:
        fault = await self._host.rules_fault() if self._settled else ""
        if fault:
            await self._apply()
        return fault

    async def heal_tunnels(self) -> None:
        if self._reach.ports and self._configured:
            await self._route()

    async def connect(self, peers: Sequence[Peer], step: int = 0) -> tuple[Peer, ...]:
        self._members.peers, self._reach = tuple(peers), replace(self._reach, step=step)
        await self._follow()
        return await self._route() if self._configured else ()

    async def _route(self) -> tuple[Peer, ...]:
        self._routed = await self._host.routes_apply(self._members.peers, self._reach)
        return self._routed.lacking

    async def restrict(self, key: str, egress: Egress) -> None:
        await self._change(key, lambda: self._members.restrict(key, egress))

    async def screen(self, key: str, identity: str, ingress: Ingress) -> None:
        await self._change(key, lambda: self._members.screen(key, identity, ingress))

    async def _change(self, key: str, change: Callable[[], object]) -> None:
        """Change a member, if it is one; where the rules are refused it is taken back, or the next of anybody's would bring
        it into force."""
        before = self._members.find(key)
        change()
        changed = self._members.find(key)
        if before is None or changed is None:
            return
        try:
            await self._follow()
        except BaseException:
            self._members.take_back(key, changed, before)
            raise

    async def recognize(self, sources: Sequence[Source]) -> None:
        if self._members.recognize(sources):
            await self._follow()

    async def publish(self, ports: Sequence[PublishedPort]) -> None:
        if self._members.published.publish(ports, self._publish.ports):
            await self._follow()

    async def retire(self, key: str) -> None:
        if self._members.retire(key):
            await self._follow()

    async def _follow(self) -> None:
        if self._settled:
            await self._apply()

    async def release(self, key: str) -> None:
        try:
            if self._members.remove(key, self._clock()):
                await self._follow()
        finally:  # rules that were refused are put right later, and this by nobody else
            if tap := self._held_back.get(key):
                await self._host.tap_forget(tap)
                self._held_back.pop(key, None)

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
            self._members.resolver = self._resolver.serves
            self._resolver.admit(self._members.by_key)
            await self._host.rules_apply(self._members.rules())
            self._applied = covers
