"""Fuzz the whole API with schemathesis: `python -m tests.fuzz.api_run SECONDS`, signed in and, for a fifth of the time, not.

With 0 seconds: a case or two of each operation. Ends with 1 where a check failed. A long run also covers each value of the
document's schemas by turns and goes from one operation to the next; it fails where an operation was not answered well often
enough to say that its answers were checked.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-api-fuzz"
SEED = 20_251
ENOUGH = 50
LONG_S = 1800
_STREAMS = "^(stream_events|stream_logs)$"
"""Operations whose answers have no end; they have tests of their own."""
_COUNT = re.compile(r'shellwego_http_requests_total\{operation="(\w+)",status="(\d+)"\} (\d+)')


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


def fuzz(site: dict[str, str], seconds: int, *, cases: int, token: bool, phases: str) -> int:
    """Run schemathesis over all operations, again and again for so long, and once for 0 seconds; returns its exit code."""
    bound = ["--max-time", str(seconds)] if seconds else []
    signed = ["--header", f"Authorization: Bearer {site['token']}"] if token else []
    command = [
        str(ENVIRONMENT / "bin/schemathesis"),
        *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
        *("run", f"{site['api']}/v1/openapi.json", "--checks", "all", "--phases", phases, "--warnings", "off"),
        *("--max-examples", str(cases), "--seed", str(SEED), "--workers", "2"),
        *bound,
        *("--generation-database", "none"),
        *("--exclude-operation-id-regex", _STREAMS, "--request-timeout", "30", "--suppress-health-check", "all"),
        *signed,
    ]
    with tempfile.TemporaryDirectory() as directory:  # what it leaves behind goes with it
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "SCHEMATHESIS_HOOKS": "api_hooks",
            "PYTHONPATH": str(Path(__file__).parent),
            "API_THINGS": site["things"],
            "API_SEED": str(SEED),
        }
        return subprocess.run(command, cwd=directory, env=environment, check=False).returncode


def answers(site: dict[str, str]) -> dict[str, Counter[int]]:
    """Operation → status → how often it was answered."""
    request = urllib.request.Request(  # noqa: S310 - of the server that we fuzz
        f"{site['api']}/metrics", headers={"Authorization": f"Bearer {site['token']}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        text = answer.read().decode()
    found: dict[str, Counter[int]] = {}
    for operation, status, count in _COUNT.findall(text):
        found.setdefault(operation, Counter())[int(status)] = int(count)
    return found


def main() -> int:
    seconds = int(sys.argv[1])
    with served() as site:
        phases = "examples,coverage,fuzzing,stateful" if seconds >= LONG_S else "fuzzing"
        cases = 5 if seconds else 1
        failed = fuzz(site, seconds * 4 // 5, cases=cases, token=True, phases=phases) != 0
        failed |= fuzz(site, seconds // 5, cases=1, token=False, phases="fuzzing") != 0
        found = answers(site)
    good = {name: sum(n for status, n in counts.items() if 200 <= status < 300) for name, counts in found.items()}
    bad = {name: counts for name, counts in found.items() if any(status >= 500 and status != 503 for status in counts)}
    told = "making what the cases are about included"
    print(f"{sum(counts.total() for counts in found.values())} answers of {len(found)} operations, {told}")
    few = {name: count for name, count in sorted(good.items()) if count < ENOUGH and name != "none"}
    if few:
        print("answered well seldom:", *(f"{name}={count}" for name, count in few.items()))
    if bad:
        print("failed inside:", bad)
    return int(failed or bool(bad) or (seconds >= LONG_S and bool(few)))


if __name__ == "__main__":
    sys.exit(main())
