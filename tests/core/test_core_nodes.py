"""What a node tells of its host."""

from __future__ import annotations

from shellwego.core.nodes import NodeFacts, Offer

GIB = 1 << 30
FACTS = NodeFacts(hostname="a", version="1", cpu_milli=4000, memory_bytes=8 * GIB, disk_bytes=100 * GIB)


def test_a_host_is_offered_whole_unless_its_operator_says_otherwise() -> None:
    assert Offer().of(FACTS) == FACTS


def test_what_is_reserved_is_never_told_and_what_is_promised_is() -> None:
    told = Offer(cpu_overcommit=1, disk_overcommit=2, reserved_memory_bytes=3 * GIB).of(FACTS)
    assert (told.cpu_overcommit, told.disk_overcommit, told.memory_bytes) == (1, 2, 5 * GIB)
    assert Offer(reserved_memory_bytes=9 * GIB).of(FACTS).memory_bytes == 0
