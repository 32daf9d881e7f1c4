"""P15: two servers on one PostgreSQL; the one that leads is killed, or stands still: how long until the other's first commit
under the same lease, and whether the first one wrote anything after that.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import Result, median
from shellwego.drivers.store.migrate import upgrade
from tests.contract.postgres_server import PostgresServer, running_postgres

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "10"))
GOAL_S = 3.0
WORKER = str(Path(__file__).parent / "floor" / "failover_worker.py")
ROOT = Path(__file__).parents[1]
_PATIENCE_S = 60.0
_TRIES = 5


@dataclass(slots=True)
class Commit:
    """When a server committed, by the host's monotonic clock, and which number."""

    at: float
    number: int


@dataclass(slots=True)
class Server:
    """A process, and what it said."""

    process: subprocess.Popen[str]
    commits: queue.Queue[Commit] = field(default_factory=queue.Queue)
    all: list[Commit] = field(default_factory=list)
    refused: int = 0
    began: int = 0
    failed: int = 0

    def read(self) -> None:
        """All that it says, until its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split()
            if words[:1] == ["commit"]:
                commit = Commit(float(words[1]), int(words[2]))
                self.all.append(commit)
                self.commits.put(commit)
            elif words and words[0] in ("refused", "began", "failed"):
                setattr(self, words[0], getattr(self, words[0]) + 1)

    def next(self) -> Commit:
        return self.commits.get(timeout=_PATIENCE_S)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextmanager
def server(url: str, holder: str) -> Iterator[Server]:
    """Runs until the end of the context."""
    command = [sys.executable, WORKER, url, holder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    found = Server(process)
    reader = threading.Thread(target=found.read)
    reader.start()
    try:
        yield found
    finally:
        process.kill()
        process.wait()
        reader.join()


class Starved(Exception):
    """The second server got so little of the host that it lost its lease in its turn: this round says nothing."""


def failover(postgres: PostgresServer, end: signal.Signals, number: int) -> tuple[float, int, int]:
    """Seconds until the other's first commit; commits of the first after that; how many of its writes were refused.

    Raises:
        Starved: try again.
    """
    url = postgres.new_database()
    upgrade(url)
    text = postgres.url(url.name)
    with server(text, f"a{number}") as first:
        for _ in range(20):
            first.next()
        with server(text, f"b{number}") as second:
            while first.commits.qsize() < 100:  # the second has long begun to wait for its turn
                time.sleep(0.05)
            time.sleep(number % 10 * 0.075)  # anywhere between two renewals
            began = time.monotonic()
            first.signal(end)
            taken = second.next()
            if end is signal.SIGSTOP:
                first.signal(signal.SIGCONT)
            for _ in range(50):
                last = second.next()
            if second.began > 1 or second.failed:
                raise Starved
        late = [commit for commit in first.all if commit.number > taken.number]
        assert late or last.number - taken.number == 50, "no number is lost"
        return taken.at - began, len(late), first.refused


def patiently(postgres: PostgresServer, end: signal.Signals, number: int) -> tuple[float, int, int]:
    """A round that counts."""
    for _ in range(_TRIES):
        with suppress(Starved):
            return failover(postgres, end, number)
    raise Starved


def run() -> list[Result]:
    """Killed, then paused."""
    results = []
    with running_postgres() as postgres:
        for end, word in ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "paused, and woken later")):
            taken, late, refused = zip(*(patiently(postgres, end, number) for number in range(ROUNDS)), strict=True)
            worst = max(taken)
            text = f"{median(taken).text(' s')}, worst {worst:.2f} s; {sum(late)} stale writes"
            told = (f"{ROUNDS} rounds; writes of the first that were refused: {sum(refused)}",)
            reached = worst <= GOAL_S and not any(late)
            results.append(Result("P15", f"the leading server is {word}", text, "≤ 3 s, no stale write", reached, told))
    return results
