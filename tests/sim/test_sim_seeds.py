"""The simulation finds nothing, is the same each time, and would find something."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.crashes import OPERATIONS
from tests.sim.play import Outcome
from tests.sim.shrink import shrink
from tests.sim.story import ALL_OPERATIONS, EVENTS, FAULT_KINDS, FAULTS, NODE_DEAD, Event, Fault, Story, draw
from tests.sim.watch import Violation

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/sim"


def sim(*arguments: str, timeout: float = 7200) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the order of sets is a part of a seed, and the log is listened to."""
    command = [str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_no_story_of_a_few_seeds_violates_anything(request: pytest.FixtureRequest) -> None:
    """By night so many that each fault meets each operation."""
    number = ["1000"] if request.config.getoption("--nightly") else ["12", "--few"]
    done = sim("--seeds", *number)
    assert done.returncode == 0, done.stderr[-5000:]


def test_a_seed_is_the_same_story_each_time_and_large_enough() -> None:
    for seed in range(50):
        story = draw(seed)
        assert story == draw(seed)
        assert story.nodes >= 3
        assert story.apps >= 5
        assert sum(isinstance(part, Event) for part in story.parts) >= EVENTS >= 300
        assert sum(isinstance(part, Fault) for part in story.parts) >= FAULTS[0] >= 5


def test_some_hundred_stories_have_each_operation_under_each_fault() -> None:
    """As they are drawn: what is asked while something goes wrong."""
    met: Counter[tuple[str, str]] = Counter()
    for seed in range(500):
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
    done = sim("--mutations", "--seeds", "120")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_a_guard_that_is_taken_out_is_missed() -> None:
    done = sim("--mutations", "--seeds", "4", "--only", "idempotency")
    assert "idempotency" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_whoever_dies_at_any_step_of_an_operation_all_agree_in_the_end(request: pytest.FixtureRequest) -> None:
    done = sim("--crashes", "1" if request.config.getoption("--nightly") else "40")
    assert done.returncode == 0, done.stdout[-5000:]
    assert len(done.stdout.splitlines()) == len(OPERATIONS) + 1
