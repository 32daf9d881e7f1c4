"""A program for the inside of a namespace: serves TCP and UDP on a few ports, and probes others when told to.

Its arguments are ports that it leaves alone. It reads a line of JSON per order and answers with one. Orders:
`{"probe": [[kind, address, source], …]}` gives for each what the other end called us, or an empty text where there was no
answer; `{"seen": null}` gives the UDP payloads received; `{"send": [address, source, payload]}` sends a datagram and waits
for nothing. Addresses are of either family.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

PORT, DNS, DATABASE = 7000, 53, 5432
PATIENCE_S = 0.8
_AT_ONCE = 160
_NUMBERS = itertools.count(1)
"""Of echo requests: a raw socket hears the replies to all of them."""
seen: list[str] = []


def plain(address: str) -> str:
    """An IPv4 address as such, though it came to a socket of both families."""
    return address.removeprefix("::ffff:")


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def place_of(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """As a socket takes it; a link-local address (`fe80::1%eth0`) with its interface's number."""
    return socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4]  # type: ignore[return-value]


def tcp_server(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def udp_server(port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    return server


def serve_tcp(server: socket.socket) -> None:
    while True:
        connection, (address, *_) = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(plain(address).encode())


def serve_udp(server: socket.socket) -> None:
    while True:
        data, sender = server.recvfrom(2048)
        seen.append(data.decode(errors="replace"))
        with contextlib.suppress(OSError):
            server.sendto(plain(sender[0]).encode(), sender)


def probe_tcp(address: str, source: str, port: int = PORT) -> str:
    with socket.create_connection((address, port), PATIENCE_S, (source, 0) if source else None) as connection:
        return connection.recv(100).decode()


def probe_udp(address: str, source: str, port: int = PORT) -> str:
    """`source` may be an address, or `:port` to send from the same port again."""
    own_port = source.removeprefix(":") if source.startswith(":") else ""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.bind(("" if own_port else source, int(own_port or 0)))
        client.sendto(b"probe", place_of(address, port))
        return client.recv(100).decode()


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def probe_icmp(address: str, source: str) -> str:
    """An echo request (RFC 792) and its reply."""
    number = next(_NUMBERS) & 0xFFFF
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


def probe_icmp6(address: str, source: str, size: int = 8) -> str:
    """The same by RFC 4443; the kernel makes the checksum, and gives no header."""
    number = next(_NUMBERS) & 0xFFFF
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as client:
        client.settimeout(PATIENCE_S)
        client.bind((source, 0))
        client.sendto(struct.pack("!BBHHH", 128, 0, 0, number, 1) + bytes(size), place_of(address, 0))
        while True:
            reply, (sender, *_) = client.recvfrom(2048)
            kind, _, _, echoed, _ = struct.unpack("!BBHHH", reply[:8])
            if (kind, echoed, sender) == (129, number, address.partition("%")[0]):
                return "echo"


def probe_echo(address: str, source: str) -> str:
    return (probe_icmp6 if ":" in address else probe_icmp)(address, source)


PROBES = {
    "tcp": probe_tcp,
    "udp": probe_udp,
    "icmp": probe_echo,
    "large icmp": partial(probe_icmp6, size=1400),
    "dns": partial(probe_udp, port=DNS),
    "dns over tcp": partial(probe_tcp, port=DNS),
    "database": partial(probe_tcp, port=DATABASE),
}


def probe(order: tuple[str, str, str]) -> str:
    """A kind may name the port: `tcp:20000`."""
    kind, address, source = order
    name, _, port = kind.partition(":")
    with contextlib.suppress(OSError):
        return PROBES[name](address, source, **({"port": int(port)} if port else {}))
    return ""


def send(address: str, source: str, payload: str) -> None:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        with contextlib.suppress(OSError):
            client.sendto(payload.encode(), (address, PORT))


def main() -> None:
    left_out = set(map(int, sys.argv[1:]))
    served = [(serve_tcp, tcp_server(port)) for port in {PORT, DNS, DATABASE} - left_out]
    served += [(serve_udp, udp_server(port)) for port in {PORT, DNS} - left_out]
    for serve, server in served:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    sys.stdout.write("ready\n")  # whoever is asked from now on answers, also before its thread has run
    sys.stdout.flush()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
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
