"""P10: what the edge costs beside a stock HAProxy with one fixed route, and beside no proxy at all.

Three sides in turn: the app alone, a HAProxy with a single backend and nothing else in its configuration, and the edge with
1,000 routes, its pool and its rules. The app is a HAProxy that answers from memory, so that it is never what limits.
Throughput is compared at 64 connections, added latency at 4, where no side is saturated.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.measure import Result, difference, interleaved, median, ratio
from shellwego.core.routing import EdgeReport, Endpoint, Route, RouteState, RouteTable
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.edge.daemon import Edge
from shellwego.edge.settings import EdgeSettings

ROUTES = 1000
ROUNDS = 30
HOST = "app500.example"
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


def run() -> list[Result]:
    """Measure; about four minutes."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swg-bench-")))
        app, stock, edge = (_free_port() for _ in range(3))
        stack.enter_context(
            _haproxy(directory / "app.cfg", app, 'http-request return status 200 content-type text/plain string "ok"')
        )
        fixed = f"default_backend b\nbackend b\n    server s 127.0.0.1:{app}"
        stack.enter_context(_haproxy(directory / "stock.cfg", stock, fixed))
        stack.enter_context(_edge(directory, edge, app))
        for port in (app, stock, edge):
            _wrk(port, 64)
        rates = interleaved(ROUNDS, *(lambda port=port: _wrk(port, 64)[0] for port in (app, stock, edge)))
        tails = interleaved(ROUNDS, *(lambda port=port: _wrk(port, 4)[1] for port in (app, stock, edge)))
    return [_throughput(rates), _latency(tails)]


def _throughput(rates: list[list[float]]) -> Result:
    direct, stock, ours = rates
    share = ratio(ours, stock)
    sides = (("direct", direct), ("stock HAProxy", stock), ("edge", ours))
    return Result(
        row="P10",
        what=f"requests a second, {ROUTES} routes, 64 connections, against a stock HAProxy with one fixed route",
        measured=f"{share.text('×')}",
        goal="≥ 0.97×",
        reached=share.value >= 0.97,
        details=tuple(f"{name}: {median(samples).text(' req/s', 0)}" for name, samples in sides),
    )


def _latency(tails: list[list[float]]) -> Result:
    direct, stock, ours = tails
    added = difference(ours, direct)
    sides = (("direct", direct), ("stock HAProxy", stock), ("edge", ours))
    return Result(
        row="P10",
        what="added p99 latency, 4 connections, against the app alone",
        measured=f"+{added.text(' ms')}",
        goal="≤ +0.5 ms",
        reached=added.value <= 0.5,
        details=tuple(f"p99 {name}: {median(samples).text(' ms')}" for name, samples in sides),
    )


def _wrk(port: int, connections: int) -> tuple[float, float]:
    """One second of load: requests a second, and the 99th percentile in milliseconds. Any failed request is an error."""
    wrk = shutil.which("wrk")
    assert wrk is not None, "wrk is not installed (apt-get install wrk)"
    argv = [wrk, "-t1", f"-c{connections}", "-d1s", "--latency", "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}/"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in text, text
    assert "Socket errors" not in text, text
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    tail = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    assert rate is not None, text
    assert tail is not None, text
    return float(rate[1]), float(tail[1]) * _UNITS[tail[2]]


@contextmanager
def _haproxy(config: Path, port: int, answer: str) -> Iterator[None]:
    config.write_text(PLAIN.format(port=port, answer=answer))
    process = subprocess.Popen(["haproxy", "-q", "-db", "-f", str(config)], start_new_session=True)
    try:
        _await_port(port)
        yield
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
def _edge(directory: Path, port: int, app: int) -> Iterator[None]:
    """The edge as it is, its loops running beside the load."""
    table, ended = _Table(app), threading.Event()
    settings = EdgeSettings(name="bench", run_dir=directory, state_dir=directory)

    async def listen() -> int:
        listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        return listener.detach()

    async def place(_pid: int, _start_time: int) -> str:
        return "none"

    async def live() -> None:
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
        yield
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
