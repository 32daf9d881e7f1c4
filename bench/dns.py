"""DNS: answers a second about names of a private network, one process on one core, beside dnsmasq with the same names.

Both are asked by the same client, a process of its own that keeps 64 questions under way from each of eight addresses.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.measure import Result, interleaved, median, ratio
from plasmavmc.network.dns import wire
from plasmavmc.network.dns.names import Askers, Names, NetworkNames, write_askers, write_names

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "9"))
NAMES, ASKERS, AT_ONCE, SECONDS = 1000, 8, 64, 1.0
GOAL = 20_000
_SERVER = """
import asyncio, socket, sys
from pathlib import Path
from plasmavmc.network.dns.__main__ import Files, serve
from plasmavmc.network.dns.resolver import Resolver
files = Files(Path(sys.argv[1]), Path(sys.argv[1]))
files.resolver = Resolver(per_second=1_000_000)
udp, tcp = (socket.socket(fileno=int(each)) for each in sys.argv[2:4])
asyncio.run(serve(files, udp, tcp, tuple))
"""


def address(number: int) -> str:
    return f"10.64.{number // 250}.{number % 250 + 2}"


@contextmanager
def ours(directory: Path) -> Iterator[int]:
    """Our resolver on loopback; its port. Only its bound on one asker is lifted."""
    hosts = {f"app{number}": (address(number),) for number in range(NAMES)}
    write_names(directory, Names(networks={"net": NetworkNames(hosts=hosts)}))
    write_askers(directory, Askers(networks={f"127.0.0.{number + 1}": "net" for number in range(ASKERS)}))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        udp.bind(("127.0.0.1", 0))
        tcp.bind(udp.getsockname())
        numbers = [udp.fileno(), tcp.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(directory), *map(str, numbers)], pass_fds=numbers
        )
        port = udp.getsockname()[1]
    with ended(process):
        yield port


@contextmanager
def dnsmasq(directory: Path) -> Iterator[int]:
    """Debian's dnsmasq with the same names; its port."""
    hosts = directory / "hosts"
    hosts.write_text("".join(f"{address(number)} app{number}.internal\n" for number in range(NAMES)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            f"--port={port}",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--no-resolv",
            "--no-hosts",
            f"--addn-hosts={hosts}",
            "--local=/internal/",
            "--local-ttl=5",
            "--user=root",
            "--pid-file=",
        ]
    )
    with ended(process):
        yield port


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def questions() -> list[bytes]:
    """Each name once, for an address."""
    return [
        wire.encode_query(0, wire.name_of(f"app{number}.internal") + b"\0\1\0\1", wire.RD, edns=False, dnssec=False)
        for number in range(NAMES)
    ]


def answers_per_second(port: int) -> float:
    """Ask as fast as answers come; none may be wrong."""
    asked, told = questions(), 0
    with ExitStack() as stack:
        askers = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(ASKERS)]
        for number, asker in enumerate(askers):
            asker.bind((f"127.0.0.{number + 1}", 0))
            asker.connect(("127.0.0.1", port))
            asker.setblocking(False)
            for place in range(AT_ONCE):
                asker.send(asked[place])
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            for asker in select.select(askers, [], [], 0.2)[0]:
                for _ in range(AT_ONCE):
                    try:
                        answer = asker.recv(512)
                    except BlockingIOError:
                        break
                    assert answer[3] & 0xF == 0
                    told += 1
                    asker.send(asked[told % NAMES])
    return told / SECONDS


def settle(port: int) -> None:
    """Return when it answers right."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(0.2)
            try:
                asker.connect(("127.0.0.1", port))
                asker.send(questions()[0])
                if asker.recv(512)[-4:] == socket.inet_aton(address(0)):
                    return
            except OSError:
                time.sleep(0.05)
    raise TimeoutError("no answer")


def run() -> list[Result]:
    """Both in turn."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        ports = [stack.enter_context(ours(directory)), stack.enter_context(dnsmasq(directory))]
        for port in ports:
            settle(port)
        mine, theirs = interleaved(ROUNDS, *(lambda port=port: answers_per_second(port) for port in ports))  # type: ignore[misc]
    rate, beside = median(mine), ratio(mine, theirs)
    return [
        Result(
            "DNS",
            "answers a second about names of a private network, one core",
            rate.text("/s", 0),
            f"≥ {GOAL}/s",
            rate.value >= GOAL,
            (
                f"dnsmasq, asked by the same client: {median(theirs).text('/s', 0)}; ours is {beside.text()} times that",
                f"{NAMES} names, {ASKERS} askers with {AT_ONCE} questions each under way, the client on another core",
            ),
        )
    ]
