"""P10: what the edge costs beside a stock HAProxy with one fixed route, and beside no proxy at all.

Four sides in turn: the app alone; a HAProxy with a single backend and nothing else in its configuration, which is the floor;
a HAProxy as written by hand for one app (its host, and `option forwardfor`), which tells how much of the distance is the
job itself; and the edge with 1,000 routes, its pool and its rules. The app is a HAProxy that answers from memory.

Load generator and app run on the first CPU, the proxies on the last. Throughput is compared at 64 connections, round by
round, added latency at 4, where no side is saturated. On a busy host the steadier figure is the CPU time that the proxy
spends on a request, which is told beside.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Result, difference, interleaved, median, paired
from shellwego.core.routing import EdgeReport, Endpoint, Route, RouteState, RouteTable
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.edge.daemon import Edge
from shellwego.edge.settings import EdgeSettings

ROUTES = 1000
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
HOST = "app500.example"
LOAD_CPU, PROXY_CPU = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}

PLAIN = """\
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
global
    maxconn 2000
frontend f
    bind 127.0.0.1:{port}
    {answer}
"""


@dataclass(frozen=True, slots=True)
class Side:
    """Where requests are sent, and the processes whose CPU time they cost."""

    name: str
    port: int
    pids: Collection[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of load."""

    rate: float
    """Requests a second."""
    p99_ms: float
    cpu_us: float
    """CPU time of the side's processes for one request, in microseconds."""


def run() -> list[Result]:
    """Measure; about five minutes."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swg-bench-")))
        app, stock, hand, edge = (_free_port() for _ in range(4))
        answer = 'http-request return status 200 content-type text/plain string "ok"'
        backend = f"backend b\n    server s 127.0.0.1:{app}"
        fixed = f"default_backend b\n{backend}"
        by_hand = f"option forwardfor\n    use_backend b if {{ hdr(host) -i {HOST} }}\n{backend}"
        sides = [
            Side("direct", app, stack.enter_context(_haproxy(directory / "app.cfg", app, answer, LOAD_CPU))),
            Side("stock HAProxy", stock, stack.enter_context(_haproxy(directory / "stock.cfg", stock, fixed))),
            Side("HAProxy by hand", hand, stack.enter_context(_haproxy(directory / "hand.cfg", hand, by_hand))),
            Side("edge", edge, stack.enter_context(_edge(directory, edge, app))),
        ]
        for side in sides:
            _load(side, 64)
        many = interleaved(ROUNDS, *(lambda side=side: _load(side, 64) for side in sides))
        few = interleaved(ROUNDS, *(lambda side=side: _load(side, 4) for side in sides))
    names = [side.name for side in sides]
    return [_throughput(dict(zip(names, many, strict=True))), _latency(dict(zip(names, few, strict=True)))]


def _throughput(samples: dict[str, list[Sample]]) -> Result:
    rates = {name: [sample.rate for sample in side] for name, side in samples.items()}
    cpu = {name: [sample.cpu_us for sample in side] for name, side in samples.items()}
    share = paired(rates["edge"], rates["stock HAProxy"])
    job = paired(rates["edge"], rates["HAProxy by hand"])
    spent = paired(cpu["stock HAProxy"], cpu["edge"])
    spent_job = paired(cpu["HAProxy by hand"], cpu["edge"])
    return Result(
        row="P10",
        what=f"requests a second, {ROUTES} routes, 64 connections, against a stock HAProxy with one fixed route",
        measured=f"{share.text('×')}",
        goal="≥ 0.97×",
        reached=share.value >= 0.97,
        details=(
            *(
                f"{name}: {median(rates[name]).text(' req/s', 0)}, {median(cpu[name]).text(' µs')} of CPU a request"
                for name in samples
            ),
            f"against the HAProxy by hand (route by host, X-Forwarded-For): {job.text('×')}",
            f"by CPU time a request: {spent.text('×')} against stock, {spent_job.text('×')} against by hand",
        ),
    )


def _latency(samples: dict[str, list[Sample]]) -> Result:
    tails = {name: [sample.p99_ms for sample in side] for name, side in samples.items()}
    added = difference(tails["edge"], tails["direct"])
    beside_stock = difference(tails["edge"], tails["stock HAProxy"])
    return Result(
        row="P10",
        what="added p99 latency, 4 connections, against the app alone",
        measured=f"+{added.text(' ms')}",
        goal="≤ +0.5 ms",
        reached=added.value <= 0.5,
        details=(
            *(f"p99 {name}: {median(tail).text(' ms')}" for name, tail in tails.items()),
            f"against the stock HAProxy: {beside_stock.text(' ms')}",
        ),
    )


def _load(side: Side, connections: int) -> Sample:
    """One second of it. Any failed request is an error."""
    wrk = shutil.which("wrk")
    assert wrk is not None, "wrk is not installed (apt-get install wrk)"
    argv = [
        wrk,
        "-t1",
        f"-c{connections}",
        "-d1s",
        "--latency",
        "-H",
        f"Host: {HOST}",
        f"http://127.0.0.1:{side.port}/",
    ]
    before = _cpu_us(side.pids)
    text = subprocess.run([*_on(LOAD_CPU), *argv], capture_output=True, text=True, check=True).stdout
    spent = _cpu_us(side.pids) - before
    assert "Non-2xx" not in text, text
    assert "Socket errors" not in text, text
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    count = re.search(r"(\d+) requests in", text)
    tail = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    assert rate is not None, text
    assert count is not None, text
    assert tail is not None, text
    return Sample(float(rate[1]), float(tail[1]) * _UNITS[tail[2]], spent / int(count[1]))


def _on(cpu: int) -> list[str]:
    """The start of a command line that runs on one CPU."""
    return ["taskset", "--cpu-list", str(cpu)]


def _cpu_us(pids: Collection[int]) -> float:
    """CPU time of all threads so far (the first field of /proc/<pid>/task/<tid>/schedstat, in nanoseconds)."""
    tasks = (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1000


@contextmanager
def _haproxy(config: Path, port: int, answer: str, cpu: int = PROXY_CPU) -> Iterator[Collection[int]]:
    config.write_text(PLAIN.format(port=port, answer=answer))
    process = subprocess.Popen([*_on(cpu), "haproxy", "-q", "-db", "-f", str(config)], start_new_session=True)
    try:
        _await_port(port)
        yield [process.pid]
    finally:
        process.kill()
        process.wait()


class _Table:
    """A control plane that has one table."""

    def __init__(self, app: int) -> None:
        self.applied = threading.Event()
        self._table = RouteTable(
            version=1,
            routes=tuple(
                Route(
                    host=f"app{number}.example",
                    app_id=f"app_{number}",
                    app_name=f"app{number}",
                    state=RouteState.SERVING,
                    endpoints=(Endpoint(instance_id=f"ins_{number}", address=f"tcp:127.0.0.1:{app}"),),
                )
                for number in range(ROUTES)
            ),
        )

    async def register_edge(self, name: str) -> str:
        return f"edg_{name}"

    async def routes(self, edge_id: str, known_version: int) -> RouteTable | None:
        return None if known_version == self._table.version else self._table

    async def report_edge(self, report: EdgeReport) -> None:
        if report.applied_version == self._table.version:
            self.applied.set()


@contextmanager
def _edge(directory: Path, port: int, app: int) -> Iterator[Collection[int]]:
    """The edge as it is, its loops running beside the load, on the CPU of the proxies."""
    table, ended = _Table(app), threading.Event()
    pids: set[int] = set()
    settings = EdgeSettings(name="bench", run_dir=directory, state_dir=directory)

    async def listen() -> int:
        listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        return listener.detach()

    async def place(pid: int, _start_time: int) -> str:
        pids.add(pid)
        return "none"

    async def live() -> None:
        os.sched_setaffinity(0, {PROXY_CPU})  # of this thread, which all that it starts inherits
        edge = Edge(table, MemoryBus(), SystemClock(), settings, listen=listen, place=place)
        await edge.open()
        task = asyncio.create_task(edge.run())
        await asyncio.to_thread(ended.wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await edge.close(keep=False)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    try:
        assert table.applied.wait(15), "the edge did not apply its routes"
        yield pids
    finally:
        ended.set()
        thread.join()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")
