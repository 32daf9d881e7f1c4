"""Nodes that encrypt replace their keys because an operator asks for it, while VMs and an edge talk from node to node."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from examples.cluster.node import JoinedNode
from examples.demo.load import Load
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
SAID = "/tmp/said"
ALONE = f"""
import os
said = os.open("{SAID}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
if os.fork():
    os._exit(0)
os.setsid()
for each in (0, 1, 2):
    os.dup2(said, each)
"""
"""Lets the command end that began a program, which goes on: what is between VMs must not hang on what is between a node and
the control plane."""
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
until, sent, longest = time.monotonic() + float(sys.argv[2]), 0, 0.0
print("up", flush=True)
while (now := time.monotonic()) < until:
    talk.sendall(b"%08d" % sent)
    answer = b""
    while len(answer) < 8 and (word := talk.recv(8 - len(answer))):
        answer += word
    assert answer == b"%08d" % sent, answer
    sent, longest = sent + 1, max(longest, time.monotonic() - now)
    time.sleep({EVERY_S})
print(json.dumps([sent, longest]), flush=True)
"""
"""One connection for all of it."""


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


def begin(cluster: Cluster, instance: str, program: str, *words: str) -> None:
    """Have a program go on by itself in an instance's VM."""
    in_vm(cluster, instance, ALONE + program, *words)
    until(lambda: said(cluster, instance), f"it has begun in {instance}")
    assert said(cluster, instance) == ["up"]


def said(cluster: Cluster, instance: str) -> list[str]:
    """The lines that it has written."""
    return in_vm(cluster, instance, f"print(open('{SAID}').read(), end='')").splitlines()


def in_vm(cluster: Cluster, instance: str, program: str, *words: str) -> str:
    where = ("exec", "-a", APP, "--instance", instance, "--")
    return cluster.operator.swg(*where, "python3", "-c", program, *words)


def keys_of(cluster: Cluster, node: JoinedNode) -> set[str]:
    """The public keys that a node tells."""
    return {each["public_key"] for each in cluster.api.ask("GET", f"/v1/nodes/{node.name}").body["tunnel_keys"]}


def test_keys_are_replaced_as_an_operator_asks_and_no_connection_is_lost() -> None:
    with running_pair("--underlay", "wireguard") as cluster, ExitStack() as stack:
        pair = until(lambda: pair_of(cluster), "an instance serves on each node", within_s=180)
        before = {node.name: keys_of(cluster, node) for node in cluster.nodes}
        edge = cluster.edges[0].host.address
        begin(cluster, pair.taker, TAKE)
        asking = stack.enter_context(Load(HTTP, APP_HOST, rate=REQUESTS, connections=2, first=1, address=edge))
        begin(cluster, pair.talker, TALK, pair.address, str(TALK_S))
        cluster.operator.swg("nodes", "rotate-keys")
        samples = asking.journal.samples
        until(lambda: len(samples) >= REQUESTS * TALK_S, "requests of the whole exchange", within_s=2 * TALK_S)
        until(lambda: len(said(cluster, pair.talker)) > 1, "the connection is at its end")
        last = said(cluster, pair.talker)[-1]
        assert last.startswith("["), last
        words, longest = json.loads(last)
        print(f"{words} words, the slowest in {longest:.1f} s; {len(samples)} requests")
        assert words > TALK_S
        assert longest < LONGEST_S
        failed = [sample for sample in samples if sample.status != 200]
        assert not failed, told(failed)
        for node in cluster.nodes:
            kept = keys_of(cluster, node) & before[node.name]
            assert not kept, f"{node.name} has the key {kept} still"
