"""Limits of connections as text, and how many by the host."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.host.helper.connection_limits import FEWEST, chains_of, refused_in, render
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import QUESTION_BYTES, QUESTIONS_PER_SECOND
from plasmavmc.network.limits import connections_per_vm, tracked_connections

NAMES = HostNames.of("swg_limits")


def test_the_table_is_replaced_in_one_text_and_removed_without_a_limit() -> None:
    lines = render(NAMES, 4096).splitlines()
    assert lines[:3] == [
        f"table inet {NAMES.limits_table}",
        f"delete table inet {NAMES.limits_table}",
        f"table inet {NAMES.limits_table} {{",
    ]
    assert render(NAMES, 0).splitlines() == lines[:2]
    assert "add @opened { ether saddr ct count over 4096 } goto refuse" in lines
    assert "update @rates { ether saddr limit rate over 512/second burst 4096 packets } goto refuse" in lines


def test_questions_for_names_are_held_to_a_number_and_a_size_each_of_them_and_before_streams_are_counted() -> None:
    lines = render(NAMES, 4096).splitlines()
    rate = f"limit rate over {QUESTIONS_PER_SECOND}/second burst 1000 packets"
    question = lines[lines.index("chain question {") :][1:3]
    assert question == [f"udp length > {QUESTION_BYTES + 8} drop", f"update @questions {{ ether saddr {rate} }} drop"]
    input_ = lines[lines.index("chain input {") :][2:4]
    assert input_[0] == f'iifname "{NAMES.bridge}" udp dport 53 jump question'
    assert input_[1].endswith("goto from_vm")


def test_its_chains_are_known_by_their_rules() -> None:
    assert chains_of(NAMES, 4096) == {"from_vm": 2, "refuse": 2, "question": 2, "to_vm": 2, "forward": 2, "input": 2}
    assert chains_of(NAMES, 0) == {}


def test_what_was_refused_is_read_by_mac() -> None:
    element = {"elem": {"val": "02:00:00:00:00:01", "counter": {"packets": 7, "bytes": 420}}}
    assert refused_in({"nftables": [{"metainfo": {}}, {"set": {"elem": [element]}}]}) == {"02:00:00:00:00:01": 7}
    assert refused_in({"nftables": [{"set": {"name": "refused"}}]}) == {}


def test_a_vm_may_have_a_share_of_what_the_host_remembers(tmp_path: Path) -> None:
    told = tmp_path / "nf_conntrack_max"
    told.write_text("262144\n")
    assert connections_per_vm(0, tracked_connections(told)) == 4096
    assert tracked_connections(tmp_path / "absent") == 262_144
    assert connections_per_vm(0, 1024) == 512
    assert connections_per_vm(100, 262_144) == 100
    assert connections_per_vm(1, 262_144) == FEWEST
