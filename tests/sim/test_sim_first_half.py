"""The first half of a thousand stories finds nothing; see `tests.sim.thousand`."""

from __future__ import annotations

import pytest

from tests.sim.thousand import TRUNKS, check_table, play_trunk, shared


@pytest.mark.parametrize("begin", TRUNKS[:4])
def test_no_story_of_a_trunk_violates_anything(begin: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    counts = shared(tmp_path_factory)
    play_trunk(begin, counts)
    check_table(counts)
