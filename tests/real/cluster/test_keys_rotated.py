"""Nodes that encrypt replace their keys because an operator asks for it, while VMs and an edge talk from node to node."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

import pytest

from examples.cluster.node import JoinedNode
from examples.demo.load import Load
from examples.demo.platform import SWG
from shellwego.core.peers import ROTATION_STEP_S, ROTATION_STEPS
from tests.real.cluster.hosts import APP, APP_HOST, HTTP, Cluster, running_pair
from tests.real.platform_harness import told, until

pytestmark = [pytest.mark.real, pytest.mark.nightly]

PORT, EVERY_S = 9000, 0.1
REQUESTS = 4
"""A second, through the edge of one node, to the instances of both."""
TALK_S = ROTATION_STEPS * ROTATION_STEP_S + 30
LONGEST_S = 15.0
"""That an answer may take: a boot of a VM on this machine takes as long; a packet that is lost is sent again."""
TAKE = f"""
import socket
taken = socket.create_server(("::", {PORT}), family=socket.AF_INET6)
print("up", flush=True)
talk, _ = taken.accept()
while word := talk.recv(100):
    talk.sendall(word)
"""
TALK = f"""
import json, socket, sys, time
talk = socket.create_connection((sys.argv[1], {PORT}), 20)
until, sent, longest, told = time.monotonic() + float(sys.argv[2]), 0, 0.0, 0.0
while (now := time.monotonic()) < until:
    talk.sendall(b"%08d" % sent)
    answer = b""
    while len(answer) < 8 and (word := talk.recv(8 - len(answer))):
        answer += word
    assert answer == b"%08d" % sent, answer
    sent, longest = sent + 1, max(longest, time.monotonic() - now)
    if now - told > 10:
        print("so far", sent, flush=True)
        told = now
    time.sleep({EVERY_S})
print(json.dumps([sent, longest]))
"""
"""One connection for all of it. It says now and then how far it is, so that nobody takes it for one that hangs."""


@dataclass(frozen=True)
class Pair:
    """Instances on two nodes: who talks, and who takes."""

    talker: str
    taker: str
    address: str


def pair_of(cluster: Cluster) -> Pair | None:
    """Those of the app, once each has its address and they are on two nodes."""
    found = cluster.api.ask("GET", f"/v1/apps/{APP}/instances").body["data"]
    ready = [each for each in found if each["phase"] == "healthy" and each["private_address"]]
    if len({each["node_id"] for each in ready}) != 2 or len(ready) != 2:
        return None
    return Pair(ready[0]["id"], ready[1]["id"], ready[1]["private_address"])


@contextmanager
def running(cluster: Cluster, instance: str, program: str, *words: str) -> Iterator[IO[str]]:
    """A program in an instance's VM; what it says."""
    command = [SWG, "exec", "-a", APP, "--instance", instance, "--", "python3", "-c", program, *words]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(cluster.operator.config_home)}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def keys_of(cluster: Cluster, node: JoinedNode) -> set[str]:
    """The public keys that a node tells."""
    return {each["public_key"] for each in cluster.api.ask("GET", f"/v1/nodes/{node.name}").body["tunnel_keys"]}


def test_keys_are_replaced_as_an_operator_asks_and_no_connection_is_lost() -> None:
    with running_pair("--underlay", "wireguard") as cluster, ExitStack() as stack:
        pair = until(lambda: pair_of(cluster), "an instance serves on each node", within_s=180)
        before = {node.name: keys_of(cluster, node) for node in cluster.nodes}
        taking = stack.enter_context(running(cluster, pair.taker, TAKE))
        assert taking.readline() == "up\n"
        edge = cluster.edges[0].host.address
        asking = stack.enter_context(Load(HTTP, APP_HOST, rate=REQUESTS, connections=2, first=1, address=edge))
        talking = stack.enter_context(running(cluster, pair.talker, TALK, pair.address, str(TALK_S)))
        assert talking.readline().startswith("so far")
        cluster.operator.swg("nodes", "rotate-keys")
        *_, last = talking
        assert last.startswith("["), last
        words, longest = json.loads(last)
        assert words > TALK_S
        assert longest < LONGEST_S
        failed = [sample for sample in asking.journal.samples if sample.status != 200]
        assert not failed, told(failed)
        assert len(asking.journal.samples) > TALK_S
        for node in cluster.nodes:
            kept = keys_of(cluster, node) & before[node.name]
            assert not kept, f"{node.name} has the key {kept} still"
