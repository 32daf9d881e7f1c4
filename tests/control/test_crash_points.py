"""SIGKILL at each step of a use case: what was acknowledged is there once, and what was not is there whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shellwego.drivers.store.location import PostgresUrl
from tests.contract.store_databases import Database

ROOT = Path(__file__).resolve().parents[2]
NOTHING = {"app": 0, "events": 0, "unaudited": 0}
ONCE = {"app": 1, "events": 1, "unaudited": 0}


@pytest.mark.databases("sqlite", "postgres")
def test_a_write_whose_server_dies_at_any_step_is_there_once_after_its_client_asked_again(
    database: Database, request: pytest.FixtureRequest
) -> None:
    place = database.location.dsn if isinstance(database.location, PostgresUrl) else str(database.location)
    command = [sys.executable, "-m", "tests.control.crash_worker", place]
    command += ["all"] if request.config.getoption("--nightly") else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    points = json.loads(done.stdout)
    names = [point["dies_before"] for point in points]
    assert {"BEGIN", "INSERT", "COMMIT", "committed", "hint", "hinted", "end"} <= set(names)
    committed = names.index("committed")
    for number, point in enumerate(points):
        killed = point["dies_before"] != "end"
        assert point["ended"] == (-9 if killed else 0), point
        assert point["before"] == (NOTHING if number < committed else ONCE), point
        assert (point["status"], point["after"]) == (201, ONCE), point
