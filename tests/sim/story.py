"""What happens to a simulated platform, as data: drawn from a seed, told in words, and cut down when it fails.

An event means something in any state of the platform (numbers are taken modulo what there is), so a story without some of
its events is a story too.

Stories are the ways through trees. At each of `FORKS` a story goes on in one of several ways, and all that is drawn from
there on (events, faults, and every chance on the way) is drawn by the dice of the way taken. So seeds that are near one
another share their beginning, which `tests.sim.grove` plays once for all of them; a seed played alone is the same story.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import prod

LENGTH_S = 40.0
FORKS = ((20.0, 4), (30.0, 2), (36.0, 2), (38.5, 8))
"""When a story may go on in several ways, and in how many."""
OF_A_TRUNK = prod(number for _, number in FORKS)
"""So many stories begin alike."""
STARTS = (0.0, *(at for at, _ in FORKS))
"""Of the stretches between forks."""
_STRETCHES = tuple(zip(STARTS, (*STARTS[1:], LENGTH_S), strict=True))
EVENTS = 300
FAULTS = ((5, 7), (2, 3), (1, 2), (1, 1), (1, 2))
"""At least and at most, in each stretch between forks."""
APPS = (5, 6)
ROOMY_BYTES, NARROW_BYTES = 8 << 30, 5 << 30
"""The memory of a node: in half of all trunks just enough for the largest instance, so that who comes has to find out
who goes."""

OPERATIONS = {
    "deploy": 10,
    "deploy-bad": 6,
    "scale": 8,
    "rollback": 6,
    "restart": 4,
    "stop": 3,
    "start": 8,
    "run": 5,
    "stop-run": 3,
    "sleep": 5,
    "wake": 5,
    "cancel": 5,
    "destroy": 3,
    "create": 3,
    "denied": 3,
    "prioritize": 10,
    "attach": 10,
    "detach": 2.5,
    "volume-create": 3,
    "volume-resize": 2,
    "snapshot": 3,
    "snapshot-delete": 3,
    "restore": 3,
    "volume-delete": 2,
    "volume-move": 5,
    "move-cancel": 1.5,
    "replicate": 5,
    "replicate-off": 1.5,
    "promote": 1.5,
    "copy-drop": 1.5,
}
"""What a tenant asks, and how often beside the others."""

_OF_VOLUMES = frozenset(list(OPERATIONS)[list(OPERATIONS).index("attach") :])
"""Those of every second app alone; the others hold nothing, so they can go where others need room."""

NODE_OPERATIONS = {
    "cordon": 2,
    "uncordon": 4,
    "drain": 3,
    "node-label": 1.5,
    "node-remove": 2,
    "rebalance": 2,
    "rebalance-cancel": 2,
}
"""What the platform's operator asks."""
ALL_OPERATIONS = (*OPERATIONS, *NODE_OPERATIONS)

HAPPENINGS = {"session": 6, "workload-ends": 2}
"""What requests and workloads do by themselves."""
_ODDS = {**OPERATIONS, **NODE_OPERATIONS, **HAPPENINGS}
_KINDS, _WEIGHTS = tuple(_ODDS), tuple(accumulate(_ODDS.values()))

FAULT_KINDS = {
    "hints-lost": (1, 10),
    "hints-doubled": (1, 10),
    "hints-late": (1, 10),
    "node-cut": (1, 12),
    "node-away": (17, 22),
    "node-mute": (1, 8),
    "node-deaf": (1, 8),
    "uplink-late": (2, 8),
    "uplink-doubled": (2, 10),
    "agent-killed": (0.2, 6),
    "agent-paused": (1, 9),
    "node-rebooted": (0.5, 8),
    "node-flapping": (30, 30),
    "node-on-the-verge": (30, 30),
    "server-killed": (0.2, 8),
    "server-stopped": (0.2, 8),
    "server-paused": (1, 20),
    "server-cut": (1, 18),
    "server-deaf": (1, 6),
    "edge-killed": (0.2, 8),
    "edge-paused": (1, 12),
    "edge-cut": (1, 12),
    "haproxy-killed": (2, 2),
    "store-full": (0.5, 20),
    "store-slow": (1, 8),
    "boots-fail": (1, 6),
    "sleep-fails": (2, 10),
    "disk-fails": (1, 6),
    "streams-cut": (2, 10),
    "registry-away": (1, 8),
    "clock-step": (2, 2),
    "vm-killed": (2, 2),
    "client-lost": (2, 10),
    "client-doubled": (2, 10),
}
"""What goes wrong, and for how long at least and at most, in seconds."""
NODE_DEAD = "node-dead"
"""For ever; at most once in a story, since the others have to hold everything."""


@dataclass(frozen=True, slots=True)
class Event:
    at: float
    kind: str
    app: int
    number: int
    """Whatever the kind needs to choose from."""

    def __str__(self) -> str:
        whose = "" if self.kind in NODE_OPERATIONS else f"app {self.app}: "
        return f"{self.at:7.3f} s  {whose}{self.kind} ({self.number})"


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    kind: str
    seconds: float
    number: int

    def __str__(self) -> str:
        return f"{self.at:7.3f} s  {self.kind} ({self.number}) for {self.seconds:.3f} s"


@dataclass(frozen=True, slots=True)
class Story:
    seed: int
    nodes: int
    servers: int
    edges: int
    apps: int
    parts: tuple[Event | Fault, ...]
    """In the order of time."""
    kept: tuple[int, ...] = ()
    """Which parts of the whole story these are."""
    memory_bytes: int = ROOMY_BYTES
    """Of each node."""

    @property
    def ways(self) -> tuple[str, ...]:
        """What the dice of each stretch are named by: those of stories that have begun alike are the same so far."""
        turns = path(self.seed)
        return tuple(".".join(map(str, turns[: stretch + 1])) for stretch in range(len(turns)))

    def stretch(self, number: int) -> tuple[Event | Fault, ...]:
        """The parts between two forks."""
        return tuple(part for part in self.parts if bisect_right(STARTS, part.at) - 1 == number)

    def only(self, kept: Collection[int]) -> Story:
        """The story with these of its parts alone."""
        chosen = tuple(index for index in self.kept if index in kept)
        by_index = dict(zip(self.kept, self.parts, strict=True))
        return replace(self, parts=tuple(by_index[index] for index in chosen), kept=chosen)

    def told(self) -> str:
        """For people."""
        nodes = f"{self.nodes} nodes of {self.memory_bytes >> 30} GiB"
        head = f"{self.servers} servers, {nodes}, {self.edges} edges, {self.apps} apps"
        lines = (f"  [{index:3}] {part}" for index, part in zip(self.kept, self.parts, strict=True))
        return "\n".join([head, *lines])


def path(seed: int) -> tuple[int, ...]:
    """The trunk of a story, and the way that it takes at each fork."""
    turns: list[int] = []
    for _, number in reversed(FORKS):
        seed, turn = divmod(seed, number)
        turns.append(turn)
    return (seed, *reversed(turns))


def draw(seed: int) -> Story:
    """The story of a seed: at least 300 events and 10 faults, on at least three nodes."""
    whole = Story(seed=seed, nodes=0, servers=0, edges=0, apps=0, parts=())
    trunk, *others = whole.ways
    sizes, begun = _trunk(trunk)
    further = (_stretch(random.Random(f"story/{way}"), number, sizes["apps"]) for number, way in enumerate(others, 1))
    parts = [*begun, *(part for each in further for part in each)]
    parts.sort(key=lambda part: (part.at, part.kind, part.number))
    return replace(whole, **sizes, parts=tuple(parts), kept=tuple(range(len(parts))))


@lru_cache(maxsize=4)
def _trunk(way: str) -> tuple[dict[str, int], list[Event | Fault]]:
    """How large the platform is, and what happens up to the first fork."""
    dice = random.Random(f"story/{way}")
    apps = dice.randint(*APPS)
    parts: list[Event | Fault] = [
        Event(0.01 * number, "create", number, dice.randrange(1000)) for number in range(apps)
    ]
    dead = dice.random() < 0.2
    sizes = {"servers": dice.randint(1, 2), "edges": dice.randint(1, 2), "nodes": dice.randint(3, 4), "apps": apps}
    if dead:
        sizes["nodes"] = 4
        parts.append(Fault(dice.uniform(2.0, FORKS[0][0]), NODE_DEAD, LENGTH_S, dice.randrange(1000)))
    parts += _stretch(dice, 0, apps)
    sizes["memory_bytes"] = dice.choice((ROOMY_BYTES, NARROW_BYTES))
    return sizes, parts


def _stretch(dice: random.Random, number: int, apps: int) -> list[Event | Fault]:
    begin, end = _STRETCHES[number]
    events = [_event(dice, apps, begin, end) for _ in range(round(EVENTS * (end - begin) / LENGTH_S))]
    kinds = dice.choices(list(FAULT_KINDS), k=dice.randint(*FAULTS[number]))
    return [*events, *(_fault(dice, kind, begin, end) for kind in kinds)]


def _event(dice: random.Random, apps: int, begin: float, end: float) -> Event:
    kind = dice.choices(_KINDS, cum_weights=_WEIGHTS)[0]
    at, app, number = dice.uniform(max(begin, 0.1), end), dice.randrange(apps), dice.randrange(1000)
    return Event(at, kind, app - app % 2 if kind in _OF_VOLUMES else app, number)


def _fault(dice: random.Random, kind: str, begin: float, end: float) -> Fault:
    at = dice.uniform(max(begin, 1.0), min(end, LENGTH_S - 1.0))
    return Fault(at, kind, dice.uniform(*FAULT_KINDS[kind]), dice.randrange(1000))
