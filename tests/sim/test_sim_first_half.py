"""The first half of a thousand stories finds nothing; see `tests.sim.thousand`."""

from __future__ import annotations

import pytest

from tests.sim.thousand import TRUNKS, play_trunk


@pytest.mark.parametrize("begin", TRUNKS[:4])
def test_no_story_of_a_trunk_violates_anything(begin: int) -> None:
    play_trunk(begin)
