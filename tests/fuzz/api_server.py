"""The API on SQLite with things in it, for who fuzzes it from outside: `python -m tests.fuzz.api_server`.

Prints a line of JSON: the API's address, a token of its administrator, and the address at which a GET makes fresh things
(`api_things`). Serves until its standard input ends.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shellwego.drivers.store.sqlite import open_sqlite
from tests.api.api_world import ADMIN
from tests.api.running_api import Running
from tests.fuzz.api_things import make_things


def things_server(running: Running) -> ThreadingHTTPServer:
    """Makes fresh things for each GET."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with one_at_a_time:
                content = json.dumps(running.do(make_things(running.world))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is logged."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Running(directory / "spool", lambda clock: open_sqlite(directory / "state.db", clock)) as running:
            things = things_server(running)
            threading.Thread(target=things.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{things.server_address[1]}"
            print(json.dumps({"api": running.url, "token": ADMIN, "things": address}), flush=True)
            sys.stdin.read()
            things.shutdown()
            things.server_close()


if __name__ == "__main__":
    main()
