"""Do database, nodes, hypervisors, routes and hosts agree? Each looked at by itself, past the platform's own words."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.cluster.node import JoinedEdge, JoinedNode
from plasmavmc.host.names import HostNames, tap_name
from plasmavmc.types import vm_key
from tests.real.cluster.hosts import APP, INSTANCES, Cluster

_ENDED = ("stopped", "failed", "lost")
_CGROUPS = [Path("/sys/fs/cgroup", name) for name in ("", "memory", "cpu", "pids")]
_INSTANCE = re.compile(r"ins_[0-9a-z]{26}")


@dataclass(frozen=True, slots=True)
class Row:
    """An instance that has not ended, as the database has it."""

    id: str
    node: str
    slot: int
    phase: str
    desired: str
    vm: str
    """The key of its VM."""
    address: str


def disagreements(cluster: Cluster) -> list[str]:
    """What is wrong, in words; empty: all is well (L2, L3)."""
    rows = _rows(cluster)
    found = [
        f"{row.id} is {row.phase}/{row.desired}" for row in rows if (row.phase, row.desired) != ("healthy", "serve")
    ]
    found += _doubles("slot", [str(row.slot) for row in rows]) + _doubles("address", [row.address for row in rows])
    if len(rows) != INSTANCES:
        found.append(f"{len(rows)} instances")
    found += [
        f"node {name} is {health}"
        for name, health in cluster.sql("SELECT name, health FROM nodes")
        if health != "ready"
    ]
    found += _leases(cluster)
    for node in cluster.nodes:
        found += _of_node(node, {row.vm for row in rows if row.node == node.name})
    for edge in cluster.edges:
        found += _of_edge(edge, {row.id for row in rows})
    return found


def _rows(cluster: Cluster) -> list[Row]:
    listed = cluster.sql(
        "SELECT i.id, n.name, i.slot, i.phase, i.desired, i.observed FROM instances i JOIN apps a ON a.id = i.app_id"
        " LEFT JOIN nodes n ON n.id = i.node_id WHERE a.name = %s",
        APP,
    )
    rows = []
    for id_, node, slot, phase, desired, observed in listed:
        if phase not in _ENDED:
            seen: dict[str, Any] = json.loads(str(observed))
            key = vm_key(seen["vm_id"]) if seen.get("vm_id") else ""
            assert isinstance(slot, int)
            rows.append(Row(str(id_), str(node), slot, str(phase), str(desired), key, str(seen.get("address", ""))))
    return rows


def _doubles(what: str, values: list[str]) -> list[str]:
    return [f"{what} {value!r} twice" for value, times in Counter(values).items() if times > 1]


def _leases(cluster: Cluster) -> list[str]:
    """Each loop is run by a server that is there."""
    held = cluster.sql("SELECT id, holder, until > extract(epoch FROM clock_timestamp()) FROM leases")
    holders = {server.holder for server in cluster.servers}
    loops = [(id_, holder, lives) for id_, holder, lives in held if str(id_).startswith("loop.")]
    return [f"lease {id_} of {holder}" for id_, holder, lives in loops if not lives or holder not in holders]


def _of_node(node: JoinedNode, wanted: set[str]) -> list[str]:
    """VMMs, taps and cgroups of exactly these VMs are on a node's host."""
    names = HostNames(node.key)
    expected = {
        "VMM": {f"swg-{node.key}-{key}" for key in wanted},
        "tap": {tap_name(names.code, key) for key in wanted},
    }
    taps = {link for link in _links(node) if names.is_tap(link)}  # one that was made ahead is nobody's yet
    present = {"VMM": set(node.vmms().values()), "tap": taps}
    found = [
        f"{node.name}: {what}s {sorted(present[what])} instead of {sorted(expected[what])}"
        for what in expected
        if present[what] != expected[what]
    ]
    groups = {path.name for root in _CGROUPS for path in root.glob(f"swg-{node.key}/vm-*")}
    seats = len(groups) - len(wanted)  # one waits for the next VM
    return found if seats in (0, 1) else [*found, f"{node.name}: {len(groups)} cgroups for {len(wanted)} VMs"]


def _links(node: JoinedNode) -> list[str]:
    shown = subprocess.run(
        ["ip", "-n", node.host.namespace, "-j", "link"], capture_output=True, check=True, timeout=20
    ).stdout
    return [link["ifname"] for link in json.loads(shown)]


def _of_edge(edge: JoinedEdge, wanted: set[str]) -> list[str]:
    """An edge's HAProxy sends requests to exactly these instances."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(edge.admin_socket))
            connection.sendall(b"show servers state\n")
            shown = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    except OSError as error:
        return [f"{edge.name}: HAProxy: {error}"]
    routed = set(_INSTANCE.findall(shown))
    return [] if routed == wanted else [f"{edge.name}: routes to {sorted(routed)} instead of {sorted(wanted)}"]
