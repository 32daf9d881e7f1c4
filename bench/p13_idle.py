"""P13: memory and CPU of the whole platform (helper, control plane, agent, edge's logic) at rest, with 1,000 apps."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import time
import tomllib
from pathlib import Path

from bench.measure import Result
from bench.p5_memory import MIB, private_kib
from examples.demo.platform import Platform

APPS = 1000
SETTLE_S, WATCH_S = 15.0, 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


def make_apps(platform: Platform) -> None:
    """Through the API, over one connection."""
    config = tomllib.loads((platform.config_home / "shellwego" / "config.toml").read_text())
    token = config["contexts"][config["current"]]["token"]
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", platform.api_port, timeout=30)
    for number in range(APPS):
        connection.request("POST", "/v1/apps", json.dumps({"name": f"app-{number}"}), headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 201, answer.status
    connection.close()


def own_processes(platform: Platform) -> list[int]:
    """Root's helper and the unprivileged rest; HAProxy is not ours."""
    assert platform.process is not None
    helper = platform.process.pid
    children = [int(word) for word in Path(f"/proc/{helper}/task/{helper}/children").read_text().split()]
    return [helper, *(pid for pid in children if "haproxy" not in Path(f"/proc/{pid}/comm").read_text())]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def run() -> list[Result]:
    """Started anew after the apps were made, and left alone for a while."""
    with tempfile.TemporaryDirectory(prefix="swg-bench-", dir="/var/tmp") as name:
        root = Path(name)
        root.chmod(0o755)
        platform = Platform(root / "data", root / "config")
        platform.start()
        try:
            make_apps(platform)
            platform.stop()
            platform.start()
            time.sleep(SETTLE_S)
            ours = own_processes(platform)
            before, began = sum(map(cpu_seconds, ours)), time.monotonic()
            time.sleep(WATCH_S)
            share = (sum(map(cpu_seconds, ours)) - before) / (time.monotonic() - began)
            memory = [private_kib(pid) / MIB for pid in ours]
        finally:
            platform.stop()
    return [
        Result(
            "P13",
            f"the whole platform at rest with {APPS:,} apps: private memory, CPU",
            f"{sum(memory):.1f} MiB, {share:.2%} of a core",
            "≤ 120 MB, ≤ 1 %",
            sum(memory) * 1.048576 <= 120 and share <= 0.01,
            (
                f"helper {memory[0]:.1f} MiB, the rest {sum(memory[1:]):.1f} MiB; without HAProxy",
                f"{WATCH_S:g} s, {SETTLE_S:g} s after a start; no app has a release, none is asked for",
            ),
        )
    ]
