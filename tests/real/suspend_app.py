"""A workload that shows what survives a suspend, and what no two copies may share. Standard library only.

    /count      raises a counter in memory and gives it
    /time       seconds since the epoch
    /uuid       a fresh uuid4
    /openssl    bytes of OpenSSL's own generator, from which the keys of TLS sessions come
    /tls        the secrets of a TLS handshake, made within this process
    /identity   host name, machine id, generation, addresses and MAC
    /name?x     the host name of another one, asked at its private address x
    /watch      what a thread has seen all the time: [time, host name] whenever one of both jumped
    /disk?x     appends x to a file on the writable layer and gives the file

SIGUSR2 (sent by the image's hook after a restore) makes OpenSSL's generator differ from every other copy's.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

seen: list[tuple[float, str]] = []
counter = itertools.count(1)


def watch() -> None:
    """Note time and name as often as can be, and keep what jumped."""
    before, name = time.time(), socket.gethostname()
    seen.append((before, name))
    while True:
        now, current = time.time(), socket.gethostname()
        if current != name or abs(now - before) > 1.0:
            seen.extend(((before, name), (now, current)))
        before, name = now, current
        time.sleep(0.001)


def reseed(*_: object) -> None:
    ssl.RAND_add(os.urandom(64), 64.0)


def address(request: int) -> bytes:
    """An interface's address or MAC (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return fcntl.ioctl(control, request, struct.pack("256s", b"eth0"))


def private_addresses() -> list[str]:
    """Those of IPv6 (`/proc/net/if_inet6`: address, number, prefix length, scope, flags, interface)."""
    lines = [line.split() for line in text_of("/proc/net/if_inet6").splitlines()]
    return [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line[0])) for line in lines if line[5] == "eth0"]


def name_at(address: str) -> str:
    with urllib.request.urlopen(f"http://[{address}]:8080/identity", timeout=10) as answered:
        name: str = json.load(answered)["hostname"]
    return name


def text_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def identity() -> dict[str, str]:
    return {
        "hostname": socket.gethostname(),
        "file": text_of("/etc/hostname"),
        "machine_id": text_of("/etc/machine-id"),
        "generation": text_of("/run/shellwego/generation"),
        "ipv4": socket.inet_ntoa(address(0x8915)[20:24]),
        "ipv6": " ".join(private_addresses()),
        "mac": address(0x8927)[18:24].hex(":"),
        "hosts": text_of("/etc/hosts"),
    }


def handshake() -> str:
    """Both sides of a TLS connection in memory; gives the line of secrets that such a session begins with."""
    with tempfile.NamedTemporaryFile("r") as log:
        server_side, client_side = (ssl.SSLContext(kind) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))
        server_side.load_cert_chain("/app/certificate.pem")
        client_side.check_hostname, client_side.verify_mode = False, ssl.CERT_NONE
        server_side.keylog_filename = log.name
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_side.wrap_bio(to_client, to_server)
        server = server_side.wrap_bio(to_server, to_client, server_side=True)
        pending = [client, server]
        while pending:
            for side in tuple(pending):
                try:
                    side.do_handshake()
                    pending.remove(side)
                except ssl.SSLWantReadError:
                    continue
        return next(line for line in log.read().splitlines() if line.startswith("SERVER_TRAFFIC_SECRET_0"))


def answer(path: str, query: str) -> str:
    match path:
        case "/count":
            return str(next(counter))
        case "/time":
            return str(time.time())
        case "/uuid":
            return str(uuid.uuid4())
        case "/openssl":
            return ssl.RAND_bytes(32).hex()
        case "/tls":
            return handshake()
        case "/identity":
            return json.dumps(identity())
        case "/name":
            return name_at(query)
        case "/watch":
            return json.dumps(seen)
        case "/disk":
            with Path("/app/data").open("a") as stream:
                stream.write(query)
            return Path("/app/data").read_text()
        case _:
            return "ok"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = answer(path, query).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6  # and IPv4 by it


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, reseed)
    ssl.RAND_bytes(16)  # its state exists from here on, and is in every copy
    threading.Thread(target=watch, daemon=True).start()
    print("app listens", flush=True)
    sys.exit(Server(("", 8080), Handler).serve_forever())
