"""Where an instance goes: filters that explain themselves, then a score.

The refusal is made by the filters that decide, so what the user reads is what was judged: "no node fits: 3 lack memory
(need 2 GiB, best has 1.2 GiB), 1 is draining". The choice is a pure function of its arguments; equal nodes are told apart
by name, never by chance.

Memory is never promised twice. CPU is a share, and writable layers are sparse, so both are promised `CPU_OVERCOMMIT` and
`DISK_OVERCOMMIT` times over; one instance still has to fit into the node's CPUs, and into what is free on its disk now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shellwego.core.nodes import Backend, Node, NodeHealth, Scheduling, shunned

CPU_OVERCOMMIT = 16
DISK_OVERCOMMIT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRequest:
    """What an instance needs of a node. `backend` None: any."""

    app_id: str
    process: str
    cpu_milli: int
    memory_bytes: int
    disk_bytes: int
    vcpus: int = 1
    backend: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUsage:
    """What is placed on a node, and how many of it are of which (app, process)."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    instances: int = 0
    per_process: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def plus(self, request: PlacementRequest) -> NodeUsage:
        """The usage with one more instance."""
        key = (request.app_id, request.process)
        return NodeUsage(
            cpu_milli=self.cpu_milli + request.cpu_milli,
            memory_bytes=self.memory_bytes + request.memory_bytes,
            disk_bytes=self.disk_bytes + request.disk_bytes,
            instances=self.instances + 1,
            per_process={**self.per_process, key: self.per_process.get(key, 0) + 1},
        )

    def minus(self, request: PlacementRequest) -> NodeUsage:
        """The usage without an instance that it has."""
        key = (request.app_id, request.process)
        return NodeUsage(
            cpu_milli=self.cpu_milli - request.cpu_milli,
            memory_bytes=self.memory_bytes - request.memory_bytes,
            disk_bytes=self.disk_bytes - request.disk_bytes,
            instances=self.instances - 1,
            per_process={**self.per_process, key: self.per_process.get(key, 0) - 1},
        )


@dataclass(frozen=True, slots=True)
class Placement:
    node_id: str


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


@dataclass(frozen=True, slots=True)
class _Objection:
    """Why one node does not fit; those of equal `key` are told together, with `best` the nearest miss."""

    key: str
    one: str
    many: str
    best: float = 0.0
    """For resources: what is free here."""
    detail: Callable[[float], str] | None = None


_FLAPS = _Objection("flapping", "goes down again and again", "go down again and again")


def place(request: PlacementRequest, nodes: Iterable[Node], usage: Mapping[str, NodeUsage]) -> Placement | Refusal:
    """The node for an instance: fewest of the same process, then most memory free, then by name."""
    fitting: list[Node] = []
    objections: list[_Objection] = []
    known = list(nodes)
    avoided = shunned(known)
    for node in known:
        objection = _objection(request, node, usage.get(node.id, NodeUsage()))
        if objection is None and node.id in avoided:
            objection = _FLAPS
        if objection is None:
            fitting.append(node)
        else:
            objections.append(objection)
    if not fitting:
        return _refusal(objections)
    return Placement(min(fitting, key=lambda node: _rank(request, node, usage.get(node.id, NodeUsage()))).id)


def _rank(request: PlacementRequest, node: Node, used: NodeUsage) -> tuple[int, float, str]:
    total = max(node.facts.memory_bytes, 1)
    share = (used.memory_bytes + request.memory_bytes) / total
    return used.per_process.get((request.app_id, request.process), 0), share, node.name


def _objection(request: PlacementRequest, node: Node, used: NodeUsage) -> _Objection | None:
    """The first filter that this node does not pass."""
    facts = node.facts
    cpu = min(facts.cpu_milli, facts.cpu_milli * CPU_OVERCOMMIT - used.cpu_milli)
    disk = min(facts.room_on_disk, facts.disk_bytes * DISK_OVERCOMMIT - used.disk_bytes)
    return (
        _health_objection(node)
        or _backend_objection(request, node)
        or _room_objection("CPU", request.cpu_milli, cpu, _cores)
        or _room_objection("memory", request.memory_bytes, facts.memory_bytes - used.memory_bytes, _bytes)
        or _room_objection("disk", request.disk_bytes, disk, _bytes)
    )


def _health_objection(node: Node) -> _Objection | None:
    if node.health is not NodeHealth.READY:
        return _Objection(node.health.value, f"is {node.health.value}", f"are {node.health.value}")
    if node.scheduling is not Scheduling.OPEN:
        return _Objection(node.scheduling.value, f"is {node.scheduling.value}", f"are {node.scheduling.value}")
    return None


def _backend_objection(request: PlacementRequest, node: Node) -> _Objection | None:
    """None where some backend of the node is ready and large enough."""
    offered = [b for b in node.facts.backends if b.serves(request.backend)]
    if not offered:
        name = f"the backend {request.backend}" if request.backend else "any backend"
        return _Objection("backend", f"lacks {name}", f"lack {name}")
    if any(backend.status == "ready" and _large_enough(request, backend) for backend in offered):
        return None
    probing = [backend.name for backend in offered if backend.status == "probing"]
    if probing:
        text = f"(backend {probing[0]})"
        return _Objection("probing", f"is still probing {text}", f"are still probing {text}")
    if any(backend.status == "ready" for backend in offered):
        text = "offer no backend for a VM of this size"
        return _Objection("size", text.replace("offer", "offers", 1), text)
    failed = offered[0]
    text = f"no usable backend ({failed.name}: {failed.reason or failed.status})"
    return _Objection("failed", f"has {text}", f"have {text}")


def _large_enough(request: PlacementRequest, backend: Backend) -> bool:
    """A limit of 0 is none that is known."""
    vcpus, memory = backend.max_vcpus, backend.max_memory_bytes
    return (not vcpus or request.vcpus <= vcpus) and (not memory or request.memory_bytes <= memory)


def _room_objection(name: str, need: int, free: int, show: Callable[[float], str]) -> _Objection | None:
    if need <= free:
        return None

    def detail(best: float) -> str:
        return f" (need {show(need)}, best has {show(max(best, 0))})"

    return _Objection(name, f"lacks {name}", f"lack {name}", best=free, detail=detail)


def _refusal(objections: Sequence[_Objection]) -> Refusal:
    if not objections:
        return Refusal("no node fits: no node has joined yet")
    groups: dict[str, list[_Objection]] = {}
    for objection in objections:
        groups.setdefault(objection.key, []).append(objection)
    told = sorted(groups.values(), key=lambda group: (-len(group), group[0].key))
    return Refusal("no node fits: " + ", ".join(_tell(group) for group in told))


def _tell(group: Sequence[_Objection]) -> str:
    first = group[0]
    text = f"{len(group)} {first.one if len(group) == 1 else first.many}"
    return text + first.detail(max(objection.best for objection in group)) if first.detail else text


def _cores(milli: float) -> str:
    return f"{milli / 1000:g} CPU"


def _bytes(size: float) -> str:
    """As people write it: `2 GiB`, `1.2 GiB`, `300 MiB`."""
    mib = size / (1024 * 1024)
    return f"{round(mib / 1024, 1):g} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
