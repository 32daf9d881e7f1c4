"""Fake tier: the stand-in behaves as the real program was recorded to behave."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.contract.firecracker_scenario import ACTS, perform

ROOT = Path(__file__).resolve().parents[2]
RECORDED = json.loads(Path(__file__).with_name("firecracker_1_12_1.json").read_text())
FAKE = (sys.executable, "-m", "tests.contract.fake_firecracker")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    return dict(json.loads(json.dumps(perform(FAKE, tmp_path_factory.mktemp("fake"), environment))))


@pytest.mark.parametrize("act", [act.__name__ for act in ACTS])
def test_the_stand_in_does_what_the_real_one_was_seen_to_do(seen: dict[str, list[object]], act: str) -> None:
    assert seen[act] == RECORDED[act]
