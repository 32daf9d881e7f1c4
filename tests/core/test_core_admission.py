"""What is refused before anything is stored, and with which field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shellwego.core.admission import admit, admit_counts, with_backend
from shellwego.core.apps import MIB, AppConfig, Process
from shellwego.core.images import ImageKind
from shellwego.core.nodes import Backend, Node, NodeFacts
from shellwego.core.placement_rules import PlacementRules

GIB = 1024 * MIB
KVM = Backend(name="kvm", status="ready", max_vcpus=8, max_memory_bytes=64 * GIB)
WASM = Backend(name="wasm", status="ready", isolation="wasm-sandbox", max_vcpus=1, max_memory_bytes=4 * GIB)


def node(*backends: Backend, memory: int = 8 * GIB) -> Node:
    facts = NodeFacts(
        hostname="a", version="1", cpu_milli=4000, memory_bytes=memory, disk_bytes=50 * GIB, backends=backends
    )
    return Node(id="node_a", name="a", facts=facts, last_heard_at=0.0, created_at=0.0)


def config(**changes: object) -> AppConfig:
    return AppConfig(processes=(replace(Process(), **changes),))  # type: ignore[arg-type]


def fields(config: AppConfig, *nodes: Node) -> list[str]:
    return [fault.field for fault in admit(config, nodes)]


def test_what_a_node_can_serve_is_admitted() -> None:
    assert admit(config(), [node(KVM)]) == ()


def test_each_size_beyond_the_largest_node_is_named() -> None:
    wish = config(memory_bytes=9 * GIB, cpu_milli=5000, vcpus=9, disk_bytes=60 * GIB)
    assert fields(wish, node(KVM)) == [
        "processes.web.memory",
        "processes.web.cpu",
        "processes.web.vcpus",
        "processes.web.disk",
    ]


def test_a_disk_that_is_full_now_refuses_nothing_that_would_fit_on_it() -> None:
    full = node(KVM)
    full = replace(full, facts=replace(full.facts, disk_free_bytes=0))
    assert fields(config(disk_bytes=50 * GIB), full) == []
    assert fields(config(disk_bytes=51 * GIB), full) == ["processes.web.disk"]


def test_the_message_tells_what_was_asked_and_what_there_is() -> None:
    (fault,) = admit(config(memory_bytes=9 * GIB), [node(KVM, memory=GIB), node(KVM)])
    assert fault.message == "9216 MiB asked, the largest node has 8192 MiB"


def test_a_backend_s_own_limit_counts() -> None:
    small = replace(KVM, max_memory_bytes=2 * GIB)
    assert fields(config(memory_bytes=3 * GIB), node(small)) == ["processes.web.memory"]
    assert fields(config(memory_bytes=3 * GIB), node(small), node(replace(small, max_memory_bytes=0))) == []


def test_a_backend_that_no_node_offers_is_refused_with_those_that_there_are() -> None:
    (fault,) = admit(replace(config(), backend="firecracker"), [node(KVM)])
    assert (fault.field, fault.code) == ("backend", "not-offered")
    assert "the nodes offer kvm" in fault.message


def test_a_backend_that_still_probes_is_no_reason_to_refuse() -> None:
    assert fields(replace(config(), backend="kvm"), node(replace(KVM, status="probing"))) == []


def test_a_backend_whose_probe_failed_is_none() -> None:
    assert fields(replace(config(), backend="kvm"), node(replace(KVM, status="failed"))) == ["backend"]


def test_a_count_that_all_nodes_together_could_never_hold_is_refused() -> None:
    nodes = [node(KVM), node(KVM, memory=4 * GIB)]
    assert admit_counts(config(memory_bytes=GIB), {"web": 12}, nodes) == ()
    (fault,) = admit_counts(config(memory_bytes=GIB), {"web": 13}, nodes)
    assert (fault.field, fault.message) == ("counts.web", "13 asked, the nodes hold 12 of this size at most")


def test_shares_of_cpu_and_sparse_disks_are_promised_several_times() -> None:
    assert admit_counts(config(memory_bytes=32 * MIB, cpu_milli=4000), {"web": 16}, [node(KVM)]) == ()
    assert len(admit_counts(config(memory_bytes=32 * MIB, cpu_milli=4000), {"web": 17}, [node(KVM)])) == 1
    assert admit_counts(config(memory_bytes=32 * MIB, disk_bytes=50 * GIB), {"web": 8}, [node(KVM)]) == ()
    assert len(admit_counts(config(memory_bytes=32 * MIB, disk_bytes=50 * GIB), {"web": 9}, [node(KVM)])) == 1


def test_a_platform_without_nodes_refuses_nothing() -> None:
    assert admit_counts(config(), {"web": 1000}, []) == ()
    assert admit(config(memory_bytes=1 << 50), []) == ()


def test_a_backend_for_modules_counts_for_who_names_it_alone() -> None:
    named = replace(config(), backend="wasm")
    assert fields(named, node(KVM)) == ["backend"]
    assert fields(named, node(KVM, WASM)) == []
    assert fields(replace(config(vcpus=2), backend="wasm"), node(KVM, WASM)) == ["processes.web.vcpus"]
    assert fields(config(vcpus=2), node(replace(KVM, max_vcpus=1), replace(WASM, max_vcpus=8))) == [
        "processes.web.vcpus"
    ]


@pytest.mark.parametrize(
    ("backend", "kind", "chosen"),
    [
        (None, ImageKind.WASM, "wasm"),
        (None, ImageKind.LINUX, None),
        (None, None, None),
        ("kvm", ImageKind.WASM, "kvm"),
        ("wasm", ImageKind.LINUX, "wasm"),
    ],
)
def test_an_image_chooses_the_backend_where_the_config_names_none(
    backend: str | None, kind: ImageKind | None, chosen: str | None
) -> None:
    assert with_backend(replace(config(), backend=backend), kind).backend == chosen


@pytest.mark.parametrize(
    ("backend", "kind", "holds"),
    [("kvm", ImageKind.WASM, "a WebAssembly module"), ("wasm", ImageKind.LINUX, "a Linux system")],
)
def test_an_image_on_a_backend_of_the_other_kind_is_refused(backend: str, kind: ImageKind, holds: str) -> None:
    named = replace(config(), backend=backend)
    (fault,) = admit(named, [node(KVM, WASM)], kind)
    assert (fault.field, fault.code) == ("backend", "wrong-kind")
    assert f"the image holds {holds}, which the backend “{backend}” does not run" in fault.message
    assert admit(named, [node(KVM, WASM)]) == ()


EU = replace(node(KVM), id="node_eu", region="eu", zone="one", labels={"disk": "ssd"})
US = replace(node(KVM, memory=64 * GIB), id="node_us", region="us", zone="two")


@pytest.mark.parametrize(
    ("rules", "fields_told", "words"),
    [
        (PlacementRules(region="ap"), ["placement.region"], "no node is in the region “ap”; there is: eu, us"),
        (PlacementRules(zone="three"), ["placement.zone"], "there is: one, two"),
        (PlacementRules(require={"disk": "hdd"}), ["placement.require.disk"], "no node has the label disk=hdd"),
        (PlacementRules(region="us", require={"disk": "ssd"}), ["placement"], "no node meets all of its conditions"),
        (PlacementRules(region="eu", zone="one", require={"disk": "ssd"}), [], ""),
    ],
)
def test_where_no_node_is_an_instance_cannot_be(rules: PlacementRules, fields_told: list[str], words: str) -> None:
    faults = admit(replace(config(), placement=rules), [EU, US])
    assert [fault.field for fault in faults] == fields_told
    assert all(words in fault.message for fault in faults)


def test_sizes_and_counts_are_judged_by_the_nodes_that_an_app_may_have() -> None:
    wish = config(memory_bytes=9 * GIB)
    assert fields(wish, EU, US) == []
    bound = replace(wish, placement=PlacementRules(region="eu"))
    assert fields(bound, EU, US) == ["processes.web.memory"]
    small = replace(config(memory_bytes=GIB), placement=PlacementRules(region="eu"))
    assert [fault.field for fault in admit_counts(small, {"web": 9}, [EU, US])] == ["counts.web"]
    assert admit_counts(small, {"web": 8}, [EU, US]) == ()


def test_a_platform_of_tainted_nodes_is_for_those_who_tolerate_it() -> None:
    tainted = replace(EU, labels={"taint/gpu": "yes"})
    (fault,) = admit(config(), [tainted])
    assert (fault.field, fault.code) == ("placement.tolerate", "not-offered")
    assert fault.message == "every such node has a taint that it does not tolerate: gpu=yes"
    assert admit(replace(config(), placement=PlacementRules(tolerate={"gpu": "yes"})), [tainted]) == ()
    assert fields(config(), tainted, US) == []
    (fault,) = admit(replace(config(), placement=PlacementRules(zone="one", require={"a": "b"})), [tainted, US])
    assert fault.field == "placement.require.a"
