"""A program that writes to its volume all the time, so that whoever has the volume later can tell what is there of it.

    POST /          a record: its number, from the body, is on the disk with a sum of its own once this answers 200
    GET /records    all records, a line each: number, random text, SHA-256 of both
    GET /blocks     how many blocks there are, and which of them are not what their sums say
    GET /healthz

Beside that it writes blocks of 4 KiB, each with its sum, over and over. Neither a record nor a block can be there in half: a
line without its end is cut off at the start, and a block is one page.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RECORDS, BLOCKS = Path("/data/records"), Path("/data/blocks")
PAGE, PAGES = 4096, 2048
PAUSE_S = 0.02
lock = threading.Lock()
"""Beside others nothing is read in whose middle it is written: half a block would be the reader's, and not the volume's."""


def append(serial: str) -> None:
    """Add a record, and bring it to the disk."""
    text = f"{serial} {os.urandom(24).hex()}"
    line = f"{text} {hashlib.sha256(text.encode()).hexdigest()}\n"
    with lock, RECORDS.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def write_blocks() -> None:
    """For ever, one after another, from the first again."""
    file = os.open(BLOCKS, os.O_RDWR | os.O_CREAT, 0o600)
    number = 0
    while True:
        payload = os.urandom(PAGE - hashlib.sha256().digest_size)
        with lock:
            os.pwrite(file, hashlib.sha256(payload).digest() + payload, number % PAGES * PAGE)
        number += 1
        time.sleep(PAUSE_S)


def checked_blocks(content: bytes) -> str:
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    size = hashlib.sha256().digest_size
    bad = [number for number, page in enumerate(pages) if page.strip(b"\0") and _sum(page[size:]) != page[:size]]
    return " ".join(map(str, (len(pages), *bad)))


def _sum(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        serial = self.rfile.read(int(self.headers["Content-Length"])).decode()
        append(serial)
        self.answer(serial)

    def do_GET(self) -> None:
        match self.path:
            case "/records":
                with lock:
                    self.answer(RECORDS.read_text())
            case "/blocks":
                with lock:
                    content = BLOCKS.read_bytes()
                self.answer(checked_blocks(content))
            case _:
                self.answer("ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    RECORDS.touch()
    whole = RECORDS.read_bytes()
    os.truncate(RECORDS, whole.rfind(b"\n") + 1)
    threading.Thread(target=write_blocks, daemon=True).start()
    server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "8080"))), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.2)
    os._exit(0)


if __name__ == "__main__":
    main()
