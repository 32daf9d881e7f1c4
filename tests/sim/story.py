"""What happens to a simulated platform, as data: drawn from a seed, told in words, and cut down when it fails.

An event means something in any state of the platform (numbers are taken modulo what there is), so a story without some of
its events is a story too.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace

LENGTH_S = 40.0
EVENTS = 300
FAULTS = (8, 12)
APPS = (5, 6)

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
}
"""What a tenant asks, and how often beside the others."""

NODE_OPERATIONS = {
    "cordon": 2,
    "uncordon": 4,
    "drain": 3,
    "node-label": 1.5,
    "node-remove": 1.5,
    "rebalance": 2,
    "rebalance-cancel": 1,
}
"""What the platform's operator asks."""
ALL_OPERATIONS = (*OPERATIONS, *NODE_OPERATIONS)

HAPPENINGS = {"session": 6, "workload-ends": 2}
"""What requests and workloads do by themselves."""

FAULT_KINDS = {
    "hints-lost": (1, 10),
    "hints-doubled": (1, 10),
    "hints-late": (1, 10),
    "node-cut": (1, 12),
    "node-mute": (1, 8),
    "node-deaf": (1, 8),
    "uplink-late": (2, 8),
    "uplink-doubled": (2, 10),
    "agent-killed": (0.2, 6),
    "agent-paused": (1, 9),
    "node-rebooted": (0.5, 8),
    "node-flapping": (30, 30),
    "server-killed": (0.2, 8),
    "server-stopped": (0.2, 8),
    "server-paused": (1, 20),
    "server-cut": (1, 18),
    "server-deaf": (1, 6),
    "edge-killed": (0.2, 8),
    "edge-paused": (1, 12),
    "edge-cut": (1, 12),
    "haproxy-killed": (1, 1),
    "store-full": (0.5, 5),
    "store-slow": (1, 8),
    "boots-fail": (1, 6),
    "sleep-fails": (2, 10),
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

    def only(self, kept: Collection[int]) -> Story:
        """The story with these of its parts alone."""
        chosen = tuple(index for index in self.kept if index in kept)
        by_index = dict(zip(self.kept, self.parts, strict=True))
        return replace(self, parts=tuple(by_index[index] for index in chosen), kept=chosen)

    def told(self) -> str:
        """For people."""
        head = f"{self.servers} servers, {self.nodes} nodes, {self.edges} edges, {self.apps} apps"
        lines = (f"  [{index:3}] {part}" for index, part in zip(self.kept, self.parts, strict=True))
        return "\n".join([head, *lines])


def draw(seed: int) -> Story:
    """The story of a seed: at least 300 events and 8 faults, on at least three nodes."""
    dice = random.Random(f"story/{seed}")
    apps = dice.randint(*APPS)
    events = [_event(dice, apps) for _ in range(EVENTS)]
    created = [Event(0.01 * number, "create", number, dice.randrange(1000)) for number in range(apps)]
    faults = [_fault(dice, dice.choice(list(FAULT_KINDS))) for _ in range(dice.randint(*FAULTS))]
    dead = dice.random() < 0.2
    if dead:
        faults.append(Fault(dice.uniform(2.0, 20.0), NODE_DEAD, LENGTH_S, dice.randrange(1000)))
    parts = tuple(sorted((*created, *events, *faults), key=lambda part: (part.at, part.kind, part.number)))
    return Story(
        seed=seed,
        nodes=4 if dead else dice.randint(3, 4),
        servers=dice.randint(1, 2),
        edges=dice.randint(1, 2),
        apps=apps,
        parts=parts,
        kept=tuple(range(len(parts))),
    )


def _event(dice: random.Random, apps: int) -> Event:
    weights = {**OPERATIONS, **NODE_OPERATIONS, **HAPPENINGS}
    kind = dice.choices(list(weights), list(weights.values()))[0]
    return Event(dice.uniform(0.1, LENGTH_S), kind, dice.randrange(apps), dice.randrange(1000))


def _fault(dice: random.Random, kind: str) -> Fault:
    return Fault(dice.uniform(1.0, LENGTH_S - 2.0), kind, dice.uniform(*FAULT_KINDS[kind]), dice.randrange(1000))
