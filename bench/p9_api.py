"""P9: reads and writes of the API against a bare Starlette route with the same statements and durability, in turn."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Result, interleaved, median, paired
from bench.p9_server import TOKEN

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
ROUND_S, CONNECTIONS = 2, 32
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
NAME = "recorded-app"
LUA = """
local number, own = 0, os.time() % 100000 .. "-" .. math.floor(os.clock() * 1e6)
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
request = function()
    number = number + 1
    return wrk.format(nil, "/v1/apps", nil, string.format('{"name": "w%s-%d"}', own, number))
end
"""
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@contextmanager
def server(*arguments: str) -> Iterator[int]:
    """One side; gives its port."""
    process = subprocess.Popen([sys.executable, "-m", "bench.p9_server", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def ask(port: int, method: str, path: str, body: object = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, json.dumps(body) if body is not None else None, HEADERS)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status in (200, 201), (answer.status, text[:300])
    return json.loads(text)


def record(directory: Path) -> tuple[Path, str]:
    """What our side asks the database for one read and one write, as the bare side will; and the id of an app."""
    log = directory / "statements"
    with server("ours", str(directory / "record.db"), str(log)) as port:
        ask(port, "POST", "/v1/apps", {"name": "warm"})
        log.write_text("")
        app = ask(port, "POST", "/v1/apps", {"name": NAME})
        written = log.read_text()
        read = "FROM tokens"
        while "FROM tokens" in read:  # who asks is remembered for half a second, so that nearly no read looks for it
            log.write_text("")
            ask(port, "GET", f"/v1/apps/{app['id']}")
            read = log.read_text()
    found = {
        "read": [json.loads(line) for line in read.splitlines()],
        "write": [json.loads(line) for line in written.splitlines()],
        "name": NAME,
        "body": json.dumps(app, separators=(",", ":")),
    }
    path = directory / "recorded.json"
    path.write_text(json.dumps(found))
    return path, app["id"]


class Load:
    """wrk on one side; keeps the 99th percentiles, in ms."""

    def __init__(self, port: int, path: str, script: Path | None) -> None:
        self.p99: list[float] = []
        extra = ["-s", str(script)] if script else []
        head = ["-H", f"Authorization: {HEADERS['Authorization']}"]
        self._command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S}s", "--latency", *extra, *head]
        self._command.append(f"http://127.0.0.1:{port}{path}")

    def __call__(self) -> float:
        """Requests a second."""
        said = subprocess.run(self._command, check=True, capture_output=True, text=True).stdout
        assert "Non-2xx" not in said, said
        number, unit = re.findall(r"99%\s+([0-9.]+)(us|ms|s)", said)[0]
        self.p99.append(float(number) * _UNITS[unit])
        return float(re.findall(r"Requests/sec:\s+([0-9.]+)", said)[0])


def compare(what: str, goal: float, ours: Load, bare: Load, statements: int) -> Result:
    """Both sides in turn."""
    ours()
    bare()
    ours.p99.clear()
    bare.p99.clear()
    rates = interleaved(ROUNDS, ours, bare)
    share, tail = paired(*rates), paired(ours.p99, bare.p99)
    return Result(
        "P9",
        f"API {what} against a bare Starlette route with the same statements and durability; p99",
        f"{share.text('×')}, p99 {tail.text('×')}",
        f"≥ {goal}×, p99 ≤ 2×",
        share.value >= goal and tail.value <= 2,
        (
            f"{what}: {median(rates[0]).text('/s', 0)} against {median(rates[1]).text('/s', 0)}",
            f"p99: {median(ours.p99).text(' ms', 1)} against {median(bare.p99).text(' ms', 1)}",
            f"{statements} statements a request, {CONNECTIONS} connections, {ROUNDS} rounds of {ROUND_S} s",
        ),
    )


def run() -> list[Result]:
    """Reads of one app, then creations of apps."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        recorded, app = record(directory)
        script = directory / "post.lua"
        script.write_text(LUA)
        count = {kind: len(rows) for kind, rows in json.loads(recorded.read_text()).items() if isinstance(rows, list)}
        with (
            server("ours", str(directory / "ours.db")) as ours,
            server("bare", str(directory / "record.db"), str(recorded)) as bare,
        ):
            own = ask(ours, "POST", "/v1/apps", {"name": NAME})["id"]
            return [
                compare(
                    "read", 0.6, Load(ours, f"/v1/apps/{own}", None), Load(bare, f"/v1/apps/{app}", None), count["read"]
                ),
                compare("write", 0.5, Load(ours, "/v1/apps", script), Load(bare, "/v1/apps", script), count["write"]),
            ]
