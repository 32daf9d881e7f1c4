"""Fuzz the whole API with schemathesis, signed in and not: `python -m tests.fuzz.api_run SECONDS`.

With 0 seconds: a case or two of each operation. Otherwise all of them with all that schemathesis can do, and then again
those that were not answered well often enough to say that their answers were checked, as long as there is time. Ends with 1
where a check failed, an operation failed inside, or one stayed below `ENOUGH` good answers or all of them below `CASES`; the
table says which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.api import matrix

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-api-fuzz"
SEED = 20_251
ENOUGH = 50
"""Good answers of each operation."""
CASES = 20_000
STREAMS = ("stream_events", "stream_logs")
"""Operations whose answers have no end; they have tests of their own."""
OPERATIONS = [operation.name for operation in matrix.OPERATIONS if operation.name not in STREAMS]

Counts = dict[str, Counter[int]]
"""Operation → status → how often it was answered so."""


@contextmanager
def served() -> Iterator[dict[str, str]]:
    """The API in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzz.api_server"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)


class Fuzzer:
    """Runs of schemathesis against one server, and what it answered in all of them."""

    def __init__(self, site: Mapping[str, str]) -> None:
        self._site = site
        self._runs = 0
        self.failed = False
        self.counts: Counts = {}

    def run(self, *, cases: int, signed: bool, phases: str, only: Sequence[str] = ()) -> None:
        """One run over all operations, or over these alone, with requests most of which are to be answered well."""
        self._runs += 1
        token = ["--header", f"Authorization: Bearer {self._site['token']}"] if signed else []
        chosen = ["--include-operation-id-regex", f"^({'|'.join(only)})$"] if only else []
        command = [
            str(ENVIRONMENT / "bin/schemathesis"),
            *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
            *("run", f"{self._site['api']}/v1/openapi.json"),
            *("--checks", "all", "--phases", phases, "--mode", "positive" if only else "all", "--warnings", "off"),
            *("--max-examples", str(cases), "--seed", str(SEED + self._runs), "--workers", "2"),
            *("--generation-database", "none"),
            *("--exclude-operation-id-regex", f"^({'|'.join(STREAMS)})$"),
            *("--request-timeout", "30", "--suppress-health-check", "all"),
            *chosen,
            *token,
        ]
        with tempfile.TemporaryDirectory() as directory:  # what it leaves behind goes with it
            counted = Path(directory) / "counts.json"
            environment = {
                **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
                "SCHEMATHESIS_HOOKS": "api_hooks",
                "PYTHONPATH": str(Path(__file__).parent),
                "API_THINGS": self._site["things"],
                "API_COUNTS": str(counted),
                "API_SIGNED": str(int(signed)),
                "API_WHOLE": "0.9" if only else "0.5",
                "API_SEED": str(SEED + self._runs),
            }
            self.failed |= subprocess.run(command, cwd=directory, env=environment, check=False).returncode != 0
            self._add(json.loads(counted.read_text()))

    def _add(self, counted: Mapping[str, Mapping[str, int]]) -> None:
        for operation, statuses in counted.items():
            self.counts.setdefault(operation, Counter()).update({int(each): n for each, n in statuses.items()})

    @property
    def cases(self) -> int:
        return sum(statuses.total() for statuses in self.counts.values())

    def seldom_good(self) -> list[str]:
        """Operations that were not answered well often enough yet."""
        return [name for name in OPERATIONS if self.good(name) < ENOUGH]

    def good(self, name: str) -> int:
        return sum(count for status, count in self.counts.get(name, Counter()).items() if 200 <= status < 300)

    def broken(self) -> list[str]:
        """Operations with a failure inside; 503 is said by what knows that it cannot serve now."""
        return [name for name, statuses in self.counts.items() if any(each >= 500 and each != 503 for each in statuses)]


def run_for(fuzzer: Fuzzer, seconds: float) -> None:
    """All there is, once; then again what lags behind, until nothing does or the time is over."""
    end = time.monotonic() + seconds
    fuzzer.run(cases=20, signed=True, phases="examples,coverage,fuzzing,stateful")
    fuzzer.run(cases=20, signed=False, phases="fuzzing")
    while time.monotonic() < end and (fuzzer.seldom_good() or fuzzer.cases < CASES):
        print(f"{fuzzer.cases} cases; below {ENOUGH} good answers:", *fuzzer.seldom_good(), flush=True)
        fuzzer.run(cases=ENOUGH, signed=True, phases="fuzzing", only=fuzzer.seldom_good())


def table(fuzzer: Fuzzer) -> str:
    """Answers of each operation, by the class of their status."""
    lines = [f"{'operation':32}{'2xx':>7}{'4xx':>7}{'5xx':>7}"]
    total = [0, 0, 0]
    for name in sorted(OPERATIONS):
        statuses = fuzzer.counts.get(name, Counter())
        row = [sum(n for status, n in statuses.items() if status // 100 == kind) for kind in (2, 4, 5)]
        total = [before + more for before, more in zip(total, row, strict=True)]
        lines.append(f"{name:32}" + "".join(f"{each:7}" for each in row))
    return "\n".join([*lines, f"{f'{fuzzer.cases} cases':32}" + "".join(f"{each:7}" for each in total)])


def faults(fuzzer: Fuzzer, *, whole: bool) -> list[str]:
    """Why a run failed; one that is not `whole` need not have reached everything."""
    few = fuzzer.seldom_good() if whole else []
    found = {
        "a check failed: see above": fuzzer.failed,
        f"failed inside: {' '.join(fuzzer.broken())}": fuzzer.broken(),
        f"below {ENOUGH} good answers: {' '.join(f'{name}={fuzzer.good(name)}' for name in few)}": few,
        f"fewer than {CASES} cases: give it more time": whole and fuzzer.cases < CASES,
    }
    return [words for words, holds in found.items() if holds]


def main() -> int:
    seconds = int(sys.argv[1])
    with served() as site:
        fuzzer = Fuzzer(site)
        if seconds:
            run_for(fuzzer, seconds)
        else:
            fuzzer.run(cases=1, signed=True, phases="fuzzing")
            fuzzer.run(cases=1, signed=False, phases="fuzzing")
    print(table(fuzzer))
    found = faults(fuzzer, whole=bool(seconds))
    print(*found, sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
