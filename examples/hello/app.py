"""A small real web application: greeting, health, a counter in a file, a journal of writes; slow and failing on demand.

Standard library only. How it behaves is set by its environment:

    PORT            where to listen (8080)
    HELLO_VERSION   what it calls itself
    HELLO_MODE      "" serves; "exit" ends at once with code 3; "sick" answers its health check with 500;
                    "late" listens only after HELLO_DELAY seconds
    HELLO_DELAY     seconds (5)
    HELLO_CHATTER   bytes a second that it writes to stdout beside, in numbered lines (0)

SIGTERM stops it gracefully: no new connection, what is in flight is finished.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

VERSION = os.environ.get("HELLO_VERSION", "v1")
MODE = os.environ.get("HELLO_MODE", "")
COUNTER = Path(os.environ.get("HELLO_COUNTER", "/tmp/counter"))  # noqa: S108 - the guest's own
lock = threading.Lock()
journal: list[str] = []


def count() -> int:
    """Raise the counter in the file and return it."""
    with lock:
        value = int(COUNTER.read_text()) + 1 if COUNTER.exists() else 1
        COUNTER.write_text(str(value))
    return value


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Hello-Version", VERSION)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        match url.path:
            case "/":
                self.answer(200, f"Hello from {VERSION} on {machine()}, release {release()}\n")
            case "/healthz":
                self.answer(500 if MODE == "sick" else 200, "sick\n" if MODE == "sick" else "ok\n")
            case "/counter":
                self.answer(200, f"{count()}\n")
            case "/slow":
                time.sleep(min(float(query.get("seconds", "10")), 60))
                self.answer(200, f"slow answer from {VERSION}\n")
            case "/journal":
                self.answer(200, json.dumps(journal), "application/json")
            case "/fail":
                self.answer(500, "failed, as asked\n")
            case "/exit":
                self.answer(200, "bye\n")
                os._exit(int(query.get("code", "3")))
            case _:
                self.answer(404, "no such page\n")

    def do_POST(self) -> None:
        length = min(int(self.headers.get("Content-Length", "0")), 65536)
        serial = self.rfile.read(length).decode("utf-8", "replace").strip()
        with lock:
            journal.append(serial)
            print(f"journal {serial}", flush=True)
        self.answer(200, f"{serial}\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


def machine() -> str:
    """Which microVM answers; replicas share their host name."""
    return os.environ.get("SHELLWEGO_VM_ID") or socket.gethostname()


def release() -> str:
    return os.environ.get("SHELLWEGO_RELEASE", "?")


def chatter(bytes_per_second: int) -> None:
    """Write lines of 1,000 bytes that start with `chatter N`, for ever."""
    number = 0
    while True:
        with lock:
            for _ in range(max(bytes_per_second // 10_000, 1)):
                number += 1
                print(f"chatter {number} ".ljust(999, "."))
            sys.stdout.flush()
        time.sleep(0.1)


class Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that its client reset is no news; everything else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def main() -> None:
    print(f"hello {VERSION} starts", flush=True)
    if MODE == "exit":
        print("hello cannot go on", file=sys.stderr, flush=True)
        sys.exit(3)
    if MODE == "late":
        time.sleep(float(os.environ.get("HELLO_DELAY", "5")))
    if rate := int(os.environ.get("HELLO_CHATTER", "0")):
        threading.Thread(target=chatter, args=(rate,), daemon=True).start()
    server = Server(("", int(os.environ.get("PORT", "8080"))), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"hello {VERSION} listens on {server.server_address[1]}", flush=True)
    server.serve_forever(poll_interval=0.2)
    print("hello stops", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
