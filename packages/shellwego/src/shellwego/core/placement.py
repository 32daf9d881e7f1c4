"""Where an instance goes: filters that explain themselves, then a score.

The refusal is made by the filters that decide, so what the user reads is what was judged: "no node fits: 3 lack memory
(need 2 GiB, best has 1.2 GiB), 1 is draining". The choice is a pure function of its arguments; equal nodes are told apart
by name, never by chance. Here is what a node is judged by; `fleet` finds the best of many without looking at all.

Memory is never promised twice. CPU is a share, and writable layers are sparse, so both are promised as many times over as
the node says; one instance still has to fit into the node's CPUs, and into what is free on its disk now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from shellwego.core.nodes import Backend, Node, NodeHealth, Scheduling
from shellwego.core.placement_rules import ANYWHERE, TAINT, PlacementRules, Spread


@dataclass(frozen=True, slots=True)
class Home:
    """The node that an instance cannot be without, since a volume that it mounts lives there."""

    node_id: str
    volume: str
    """As people call it."""
    returns: bool = False
    """It was there, and was stopped for a move of the volume that has not taken that away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """What an instance needs of a node; its disk, with that of its volumes that live nowhere yet. `backend` None: any."""

    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    vcpus: int = 1
    backend: str | None = None
    rules: PlacementRules = ANYWHERE
    volumes: bool = False
    """It mounts some."""
    encryption: bool = False
    """One of them is encrypted."""
    home: Home | None = None
    """None: it may be anywhere."""
    image: str = ""
    """The digest of what it runs; empty: it is not known yet."""
    memory: tuple[str, tuple[tuple[str, str], ...]] | None = None
    """It brings a memory along: of this backend, which needs a host for which all of these words are the same
    (`Backend.snapshot_host`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUsage:
    """What is placed on a node."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    instances: int = 0

    def plus(self, request: PlacementRequest) -> NodeUsage:
        """The usage with one more instance."""
        return NodeUsage(
            cpu_milli=self.cpu_milli + request.cpu_milli,
            memory_bytes=self.memory_bytes + request.memory_bytes,
            disk_bytes=self.disk_bytes + request.disk_bytes,
            instances=self.instances + 1,
        )

    def minus(self, request: PlacementRequest) -> NodeUsage:
        """The usage without an instance that it has."""
        return NodeUsage(
            cpu_milli=self.cpu_milli - request.cpu_milli,
            memory_bytes=self.memory_bytes - request.memory_bytes,
            disk_bytes=self.disk_bytes - request.disk_bytes,
            instances=self.instances - 1,
        )

    def without(self, other: NodeUsage) -> NodeUsage:
        """The usage once all of another one has gone."""
        return NodeUsage(
            cpu_milli=self.cpu_milli - other.cpu_milli,
            memory_bytes=self.memory_bytes - other.memory_bytes,
            disk_bytes=self.disk_bytes - other.disk_bytes,
            instances=self.instances - other.instances,
        )

    def together(self, other: NodeUsage) -> NodeUsage:
        """The usage and another one."""
        return NodeUsage(
            cpu_milli=self.cpu_milli + other.cpu_milli,
            memory_bytes=self.memory_bytes + other.memory_bytes,
            disk_bytes=self.disk_bytes + other.disk_bytes,
            instances=self.instances + other.instances,
        )


NOTHING = NodeUsage()


@dataclass(frozen=True, slots=True)
class Placement:
    node_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


@dataclass(frozen=True, slots=True)
class Objection:
    """Why one node does not fit; those of equal `key` are told together, with `best` the nearest miss."""

    key: str
    one: str
    many: str
    best: float = 0.0
    """For resources: what is free here."""
    detail: Callable[[float], str] | None = None
    taint: str = ""
    """Where that is why: which, as `name=value`."""


_FLAPS = Objection("flapping", "goes down again and again", "go down again and again")


@dataclass(frozen=True, slots=True)
class Room:
    """What one more instance may have on a node."""

    cpu_milli: int
    memory_bytes: int
    disk_bytes: int


Rank = tuple[int, int, float, bool, str]
"""Of the nodes that fit, the one with the smallest is taken."""


def room_on(node: Node, used: NodeUsage) -> Room:
    """What is free on a node that has this much on it; below zero where too much is promised already."""
    facts = node.facts
    return Room(
        cpu_milli=min(facts.cpu_milli, facts.cpu_milli * facts.cpu_overcommit - used.cpu_milli),
        memory_bytes=facts.memory_bytes - used.memory_bytes,
        disk_bytes=min(facts.room_on_disk, facts.disk_bytes * facts.disk_overcommit - used.disk_bytes),
    )


def objection(request: PlacementRequest, node: Node, used: NodeUsage, *, choice: bool) -> Objection | None:
    """The first filter that the node does not pass; None where the instance may go there. `choice` is whether there are
    dependable nodes at all: then one that goes down again and again gets nothing; where there is none, it has to run
    somewhere, and so has what can be on one node only."""
    standing = standing_objection(request, node, choice=choice)
    return standing or _at_home(request.home, room_objection(request, room_on(node, used)))


def away(home: Home) -> Objection:
    """As `objection`, of every node but the one that a volume lives on."""
    text = f"hold the volume {home.volume}"
    return Objection("home", f"does not {text}", f"do not {text}")


def _at_home(home: Home | None, found: Objection | None) -> Objection | None:
    """What speaks against the one node that it could be, where there is only one."""
    if home is None or found is None:
        return found
    return replace(found, one=f"holds the volume {home.volume} and {found.one}")


def standing_objection(request: PlacementRequest, node: Node, *, choice: bool) -> Objection | None:
    """As `objection`, of what does not depend on how full the node is."""
    if request.home is not None and request.home.node_id != node.id:
        return away(request.home)
    found = (
        _health_objection(node)
        or _scheduling_objection(request, node)
        or rules_objection(request.rules, node)
        or _backend_objection(request, node)
        or _memory_objection(request, node)
    )
    flaps = choice and request.home is None and node.flapping_since is not None
    return _at_home(request.home, found or (_FLAPS if flaps else None))


def rules_objection(rules: PlacementRules, node: Node) -> Objection | None:
    """As `objection`, of what the user asked for."""
    for name, wanted, has in (("region", rules.region, node.region), ("zone", rules.zone, node.zone)):
        if wanted and wanted != has:
            return Objection(name, f"is not in the {name} {wanted}", f"are not in the {name} {wanted}")
    for label, value in sorted(rules.require.items()):
        if node.labels.get(label) != value:
            text = f"the label {label}={value}"
            return Objection(f"label {label}", f"lacks {text}", f"lack {text}")
    return _taint_objection(rules, node)


def room_objection(request: PlacementRequest, room: Room) -> Objection | None:
    """As `objection`, of what is free."""
    return (
        _lack("CPU", request.cpu_milli, room.cpu_milli, _cores)
        or _lack("memory", request.memory_bytes, room.memory_bytes, _bytes)
        or _lack("disk", request.disk_bytes, room.disk_bytes, _bytes)
    )


def rank(request: PlacementRequest, node: Node, used: NodeUsage, beside: int, in_zone: int) -> Rank:
    """The place of a node that fits among all that do; `beside` is how many of the same process it has already, `in_zone`
    how many its zone has."""
    share = share_after(request, used.memory_bytes, node.facts.memory_bytes)
    lacks = request.image not in node.facts.images
    match request.rules.spread:
        case Spread.NONE:
            return 0, 0, -share, lacks, node.name
        case Spread.NODE:
            return 0, beside, share, lacks, node.name
        case Spread.ZONE:
            return in_zone, beside, share, lacks, node.name


def share_after(request: PlacementRequest, used: int, total: int) -> float:
    """Which share of a node's memory is promised once the instance is there."""
    return (used + request.memory_bytes) / max(total, 1)


def _health_objection(node: Node) -> Objection | None:
    if node.health is not NodeHealth.READY:
        return Objection(node.health.value, f"is {node.health.value}", f"are {node.health.value}")
    return None


def _scheduling_objection(request: PlacementRequest, node: Node) -> Objection | None:
    """What only comes back to its volume is nothing new on the node; where all that was left is stopped, it stays away."""
    if request.home is not None and request.home.returns and not _is_cleared(node):
        return None
    if node.scheduling is not Scheduling.OPEN:
        return Objection(node.scheduling.value, f"is {node.scheduling.value}", f"are {node.scheduling.value}")
    return None


def _is_cleared(node: Node) -> bool:
    """Nothing is to be left on the node, whatever becomes of it."""
    drain = node.drain
    return node.scheduling is Scheduling.DRAINED or (drain is not None and drain.force and drain.overdue)


def _taint_objection(rules: PlacementRules, node: Node) -> Objection | None:
    for label, value in sorted(node.labels.items()):
        name = label.removeprefix(TAINT)
        if name != label and rules.tolerate.get(name) != value:
            taint = f"{name}={value}"
            return Objection(f"taint {taint}", f"has the taint {taint}", f"have the taint {taint}", taint=taint)
    return None


def _backend_objection(request: PlacementRequest, node: Node) -> Objection | None:
    """None where some backend of the node is ready and large enough."""
    offered = [b for b in node.facts.backends if b.serves(request.backend)]
    if not offered:
        name = f"the backend {request.backend}" if request.backend else "any backend"
        return Objection("backend", f"lacks {name}", f"lack {name}")
    keeping = [b for b in offered if b.volumes or not request.volumes]
    offered = [b for b in keeping if b.encryption or not request.encryption]
    if not offered:
        verb, what = ("encrypt", "encryption") if keeping else ("keep", "volumes")
        return Objection(what, f"{verb}s no volumes", f"{verb} no volumes")
    if any(backend.status == "ready" and _large_enough(request, backend) for backend in offered):
        return None
    probing = [backend.name for backend in offered if backend.status == "probing"]
    if probing:
        text = f"(backend {probing[0]})"
        return Objection("probing", f"is still probing {text}", f"are still probing {text}")
    if any(backend.status == "ready" for backend in offered):
        text = "offer no backend for a VM of this size"
        return Objection("size", text.replace("offer", "offers", 1), text)
    failed = offered[0]
    text = f"no usable backend ({failed.name}: {failed.reason or failed.status})"
    return Objection("failed", f"has {text}", f"have {text}")


def _memory_objection(request: PlacementRequest, node: Node) -> Objection | None:
    """None where a memory that comes along can be woken."""
    if request.memory is None:
        return None
    name, wanted = request.memory
    backend = next((b for b in node.facts.backends if b.name == name and b.status == "ready"), None)
    if backend is None or not backend.snapshot_host:
        return Objection("memory unfit", "cannot take the memory", "cannot take the memory")
    ours, theirs = dict(backend.snapshot_host), dict(wanted)
    differ = sorted(word for word in ours.keys() | theirs.keys() if ours.get(word) != theirs.get(word))
    if not differ:
        return None
    text = f"unlike the one that the memory comes from ({', '.join(differ)})"
    return Objection(f"memory {' '.join(differ)}", f"is {text}", f"are {text}")


def _large_enough(request: PlacementRequest, backend: Backend) -> bool:
    """A limit of 0 is none that is known."""
    vcpus, memory = backend.max_vcpus, backend.max_memory_bytes
    return (not vcpus or request.vcpus <= vcpus) and (not memory or request.memory_bytes <= memory)


def _lack(name: str, need: int, free: int, show: Callable[[float], str]) -> Objection | None:
    if need <= free:
        return None

    def detail(best: float) -> str:
        return f" (need {show(need)}, best has {show(max(best, 0))})"

    return Objection(name, f"lacks {name}", f"lack {name}", best=free, detail=detail)


def refusal(objections: Iterable[tuple[Objection, int]]) -> Refusal:
    """All objections in one sentence, each kind with its count; each comes with the number of nodes that it is about, and
    the order in which they come does not matter."""
    groups: dict[str, list[tuple[Objection, int]]] = {}
    for each, count in objections:
        groups.setdefault(each.key, []).append((each, count))
    if not groups:
        return Refusal("no node fits: no node has joined yet")
    told = sorted((-sum(count for _, count in group), key) for key, group in groups.items())
    return Refusal(
        "no node fits: " + ", ".join(_tell([each for each, _ in groups[key]], -count) for count, key in told)
    )


def _tell(group: list[Objection], count: int) -> str:
    first = min(group, key=lambda each: each.one)
    text = f"{count} {first.one if count == 1 else first.many}"
    return text + first.detail(max(each.best for each in group)) if first.detail else text


def _cores(milli: float) -> str:
    return f"{milli / 1000:g} CPU"


def _bytes(size: float) -> str:
    """As people write it: `2 GiB`, `1.2 GiB`, `300 MiB`."""
    mib = size / (1024 * 1024)
    return f"{round(mib / 1024, 1):g} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
