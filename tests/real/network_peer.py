"""A program for the inside of a namespace: serves TCP and UDP on port 7000, and probes others when told to.

It reads a line of JSON per order and answers with one. Orders: `{"probe": [[kind, address, source], …]}` gives for each
what the other end called us, or an empty text where there was no answer; `{"seen": null}` gives the UDP payloads received;
`{"send": [address, source, payload]}` sends a datagram and waits for nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

PORT = 7000
PATIENCE_S = 0.8
seen: list[str] = []


def serve_tcp() -> None:
    with socket.create_server(("0.0.0.0", PORT)) as server:  # noqa: S104 - inside a namespace
        while True:
            connection, (address, _) = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(address.encode())


def serve_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", PORT))  # noqa: S104 - inside a namespace
        while True:
            data, (address, port) = server.recvfrom(2048)
            seen.append(data.decode())
            with contextlib.suppress(OSError):
                server.sendto(address.encode(), (address, port))


def probe_tcp(address: str, source: str) -> str:
    with socket.create_connection((address, PORT), PATIENCE_S, (source, 0) if source else None) as connection:
        return connection.recv(100).decode()


def probe_udp(address: str, source: str) -> str:
    """`source` may be an address, or `:port` to send from the same port again."""
    host, _, port = source.partition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.bind((host, int(port or 0)))
        client.sendto(b"probe", (address, PORT))
        return client.recv(100).decode()


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def probe_icmp(address: str, source: str) -> str:
    """An echo request (RFC 792) and its reply."""
    number = threading.get_ident() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        client.settimeout(PATIENCE_S)
        client.bind((source, 0))
        packet = struct.pack("!BBHHH", 8, 0, 0, number, 1) + b"probe..."
        client.sendto(packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:], (address, 0))
        while True:
            reply, (sender, _) = client.recvfrom(2048)
            header = (reply[0] & 15) * 4
            kind, _, _, echoed, _ = struct.unpack("!BBHHH", reply[header : header + 8])
            if (kind, echoed, sender) == (0, number, address):
                return "echo"


PROBES = {"tcp": probe_tcp, "udp": probe_udp, "icmp": probe_icmp}


def probe(order: tuple[str, str, str]) -> str:
    kind, address, source = order
    with contextlib.suppress(OSError):
        return PROBES[kind](address, source)
    return ""


def send(address: str, source: str, payload: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        with contextlib.suppress(OSError):
            client.sendto(payload.encode(), (address, PORT))


def main() -> None:
    for serve in (serve_tcp, serve_udp):
        threading.Thread(target=serve, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with ThreadPoolExecutor(32) as pool:
        for line in sys.stdin:
            order = json.loads(line)
            answer: object = None
            if "probe" in order:
                answer = list(pool.map(probe, order["probe"]))
            elif "seen" in order:
                answer = list(seen)
            elif "send" in order:
                send(*order["send"])
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
