"""The simulation finds nothing, is the same each time, and would find something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.crashes import OPERATIONS
from tests.sim.mutations import EVERY, misfits
from tests.sim.play import Outcome
from tests.sim.shrink import shrink
from tests.sim.story import (
    ALL_OPERATIONS,
    EVENTS,
    FAULT_KINDS,
    FAULTS,
    FORKS,
    NODE_DEAD,
    OF_A_TRUNK,
    Event,
    Fault,
    Story,
    draw,
)
from tests.sim.thousand import SEEDS, sim
from tests.sim.watch import Violation

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.nightly
def test_no_story_of_many_that_share_little_violates_anything() -> None:
    """Beside the thousand of each day (`tests.sim.thousand`): these find the most in their time, and each fault meets each
    operation."""
    done = sim("--from", str(SEEDS), "--seeds", "1000", "--every", str(EVERY))
    assert done.returncode == 0, done.stderr[-5000:]


def test_a_seed_is_the_same_story_each_time_and_large_enough() -> None:
    for seed in range(50):
        story = draw(seed)
        assert story == draw(seed)
        assert story.nodes >= 3
        assert story.apps >= 5
        assert sum(isinstance(part, Event) for part in story.parts) >= EVENTS >= 300
        assert sum(isinstance(part, Fault) for part in story.parts) >= sum(least for least, _ in FAULTS) >= 5


def test_stories_that_begin_alike_part_at_a_fork() -> None:
    for at, seed in zip((at for at, _ in reversed(FORKS)), (1, 8, 16, 32), strict=True):
        one, other = draw(0), draw(seed)
        begins = [part for part in one.parts if part.at < at]
        assert begins == [part for part in other.parts if part.at < at]
        assert one.parts[len(begins) :] != other.parts[len(begins) :]
        assert not {part for part in one.parts[len(begins) :]} & {part for part in other.parts[len(begins) :]}
    assert draw(OF_A_TRUNK).parts[0] != draw(0).parts[0]


def test_what_begins_alike_is_played_once_and_each_story_is_what_it_is_alone() -> None:
    seeds = range(OF_A_TRUNK - 2, OF_A_TRUNK)
    code = (
        "from tests.sim.grove import grow; from tests.sim.play import play; from tests.sim.story import draw\n"
        f"for outcome in grow(range({seeds.start}, {seeds.stop})):\n"
        "    print(outcome.story.seed, outcome.violation, outcome.digest == play(draw(outcome.story.seed)).digest)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{seed} None True" for seed in seeds]


def test_some_hundred_stories_have_each_operation_under_each_fault() -> None:
    """As they are drawn: what is asked while something goes wrong."""
    met: Counter[tuple[str, str]] = Counter()
    for seed in range(0, 500 * (OF_A_TRUNK + 1), OF_A_TRUNK + 1):
        parts = draw(seed).parts
        faults = [part for part in parts if isinstance(part, Fault)]
        for event in parts:
            if isinstance(event, Event):
                met.update(
                    (fault.kind, event.kind) for fault in faults if fault.at <= event.at < fault.at + fault.seconds
                )
    assert min(met[fault, operation] for fault in (*FAULT_KINDS, NODE_DEAD) for operation in ALL_OPERATIONS) > 5


def test_a_story_goes_the_same_way_in_two_processes() -> None:
    first, second = (sim("--from", "3", "--only", ",".join(map(str, range(150))), "--trace") for _ in range(2))
    assert first.stdout == second.stdout
    assert " commits " in first.stdout


def test_a_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    file.write_text(json.dumps({"next": 1000, "counts": {"none|deploy": 7}}))
    done = sim("--seeds", "1000", "--batch", str(file), "--few")
    assert "0 seeds from 1000 without a violation" in done.stdout
    assert "         7" in done.stdout


def test_a_failing_story_is_cut_down_to_what_it_takes() -> None:
    story = draw(1)

    def play(part: Story) -> Outcome:
        fails = {17, 203} <= set(part.kept)
        violation = Violation("lost-write", "planted", 1.0) if fails else None
        return Outcome(part, violation, "", {}, {}, (), 0, 1.0)

    assert shrink(play(story), seconds=30, play=play).story.kept == (17, 203)


@pytest.mark.nightly
def test_each_guard_that_is_taken_out_is_missed() -> None:
    done = sim("--mutations", "--seeds", "400")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_each_guard_that_could_be_taken_out_is_where_it_was() -> None:
    assert misfits() == []


def test_a_guard_that_is_taken_out_is_missed() -> None:
    done = sim("--mutations", "--seeds", "8", "--only", "audit of refusals")
    assert "audit of refusals" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_whoever_dies_at_any_step_of_an_operation_all_agree_in_the_end(request: pytest.FixtureRequest) -> None:
    done = sim("--crashes", "1" if request.config.getoption("--nightly") else "40")
    assert done.returncode == 0, done.stdout[-5000:]
    assert len(done.stdout.splitlines()) == len(OPERATIONS) + 1
