"""What an agent keeps across restarts."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shellwego.agent.state import BLOCK, NodeState
from shellwego.core.errors import InvalidError


def test_a_new_agent_knows_nothing(tmp_path: Path) -> None:
    state = NodeState(tmp_path / "agent")
    assert (state.node_id, state.epoch) == ("", 0)


def test_id_and_highest_epoch_survive(tmp_path: Path) -> None:
    assert NodeState(tmp_path).accept("node_1", 4)
    state = NodeState(tmp_path)
    assert (state.node_id, state.epoch) == ("node_1", 4)


def test_an_older_epoch_is_not_accepted_and_changes_nothing(tmp_path: Path) -> None:
    state = NodeState(tmp_path)
    state.accept("node_1", 4)
    assert not state.accept("node_2", 3)
    assert (state.node_id, state.epoch) == ("node_1", 4)
    assert state.accept("node_1", 4)


def test_sequences_rise_across_restarts_and_blocks(tmp_path: Path) -> None:
    numbers = []
    for _ in range(3):
        state = NodeState(tmp_path)
        numbers += [state.next_sequence() for _ in range(BLOCK + 2)]
    assert numbers == sorted(set(numbers))


def test_the_file_is_not_written_for_every_number(tmp_path: Path) -> None:
    state = NodeState(tmp_path)
    state.next_sequence()
    before = (tmp_path / "node.json").stat().st_mtime_ns
    for _ in range(100):
        state.next_sequence()
    assert (tmp_path / "node.json").stat().st_mtime_ns == before


def test_only_the_owner_may_read_it_and_no_half_written_file_stays(tmp_path: Path) -> None:
    NodeState(tmp_path).accept("node_1", 1)
    assert [file.name for file in tmp_path.iterdir()] == ["node.json"]
    assert stat.S_IMODE((tmp_path / "node.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"epoch": "high"}'])
def test_a_file_that_is_not_ours_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node.json").write_bytes(content)
    with pytest.raises(InvalidError, match=r"node\.json") as caught:
        NodeState(tmp_path)
    assert caught.value.resolution
