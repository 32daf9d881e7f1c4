"""The API on SQLite for who fuzzes it from outside, with limits that he does not meet: `python -m tests.fuzz.api_server`.

Prints a line of JSON: the API's address, a token of its administrator, and the address at which `GET /{operation}` makes a
request that works (`api_things`). Serves until its standard input ends.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shellwego.control.throttling import Counted, Throttle
from shellwego.drivers.store.sqlite import open_sqlite
from tests.api.api_world import ADMIN
from tests.api.matrix import OPERATIONS, Asked
from tests.api.running_api import Running
from tests.fuzz.api_things import make_request

_BY_NAME = {operation.name: operation for operation in OPERATIONS}
_IN_MEMORY = Path("/dev/shm")
_WITHIN_S = 60.0


class Patience(Throttle):
    """Nobody waits, however often he guesses: what is behind the wait is to be fuzzed."""

    def begin(self, counted: Sequence[Counted], now: float) -> None:
        """See `Throttle.begin`; raises nothing."""


def things_server(running: Running) -> ThreadingHTTPServer:
    """Makes a fresh request, about fresh things, for each GET."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            operation = _BY_NAME[self.path.strip("/")]
            try:
                with one_at_a_time:
                    asked = running.do(make_request(running.world, operation), _WITHIN_S)
                self._answer(200, json.dumps(_plain(asked)))
            except Exception as error:  # noqa: BLE001 - whatever it is, the fuzzer tells of it
                self._answer(500, f"{operation.name} has no request that works: {type(error).__name__}: {error}")

        def _answer(self, status: int, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is logged."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def _plain(asked: Asked) -> dict[str, Any]:
    return {**asdict(asked), "raw": None if asked.raw is None else asked.raw.decode()}


def main() -> None:
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as name:
        directory = Path(name)
        with Running(
            directory / "spool", lambda clock: open_sqlite(directory / "state.db", clock), Patience()
        ) as running:
            things = things_server(running)
            threading.Thread(target=things.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{things.server_address[1]}"
            print(json.dumps({"api": running.url, "token": ADMIN, "things": address}), flush=True)
            sys.stdin.read()
            things.shutdown()
            things.server_close()


if __name__ == "__main__":
    main()
