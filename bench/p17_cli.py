"""P17: what a command costs before it does anything, and beside curl for the same request."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.measure import Result, difference, interleaved, median

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "30"))
GOAL_MS = 150.0
SWG = str(Path(sys.executable).with_name("swg"))
NO_APPS = b'{"data":[],"pagination":{"limit":100,"has_more":false,"next_cursor":null,"prev_cursor":null}}'


class Answer(BaseHTTPRequestHandler):
    """Every request gets the list of no apps."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(NO_APPS)))
        self.end_headers()
        self.wfile.write(NO_APPS)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


def took(command: Sequence[str], environment: dict[str, str]) -> float:
    """Milliseconds of a whole process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return (time.perf_counter() - began) * 1000


def run() -> list[Result]:
    """`--version`, `--help`, and `apps ls` beside curl."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "XDG_CONFIG_HOME": home, "SHELLWEGO_API_URL": url, "SHELLWEGO_TOKEN": "pat_x"}
            commands = ([SWG, "--version"], [SWG, "--help"], [SWG, "apps", "ls"], ["curl", "-s", f"{url}/v1/apps"])
            version, usage, listed, floor = interleaved(
                ROUNDS, *(lambda command=command: took(command, environment) for command in commands)
            )
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    alone, helped, beyond = median(version), median(usage), difference(listed, floor)
    return [
        Result("P17", "swg --version", alone.text(" ms", 0), f"≤ {GOAL_MS:g} ms", alone.value <= GOAL_MS),
        Result("P17", "swg --help", helped.text(" ms", 0), f"≤ {GOAL_MS:g} ms", helped.value <= GOAL_MS),
        Result(
            "P17",
            "swg apps ls beyond curl of the same",
            beyond.text(" ms", 0),
            f"≤ +{GOAL_MS:g} ms",
            beyond.value <= GOAL_MS,
            (f"swg {median(listed).text(' ms', 0)}, curl {median(floor).text(' ms', 0)}; {ROUNDS} rounds",),
        ),
    ]
