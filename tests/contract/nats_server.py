"""A NATS server of the tests' own: the distribution's program, on loopback, set up as `swg bus init` does it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shellwego.boot.businit import make_bus
from shellwego.core.nkeys import Role
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.bus.nats import NatsSite
from shellwego.drivers.busaccess.authority import Authority, new_key, parse_authority
from shellwego.drivers.natslink import Login

_START_S = 30


@dataclass(slots=True)
class NatsServer:
    """A server that may be killed and started again on its port."""

    directory: Path
    port: int
    address: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def authority(self) -> Authority:
        return parse_authority(Sensitive((self.directory / "authority.json").read_bytes()))

    def site(self) -> NatsSite:
        """A control plane's way to it."""
        authority, key = self.authority, new_key(Role.USER)
        return NatsSite(
            urls=authority.urls,
            certificate=authority.certificate,
            login=lambda: Login(authority.server_token(key, time.time()), key),
        )

    def start(self) -> None:
        """Returns when it accepts connections."""
        program = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin")
        assert program, "nats-server is not installed; scripts/setup does that"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-c", self.directory / "server/nats.conf"], stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_S
        while True:
            with suppress(OSError), socket.create_connection((self.address, self.port), 1):
                return
            assert time.monotonic() < deadline, self.log()[-2000:]
            assert self.process.poll() is None, self.log()[-2000:]
            time.sleep(0.01)

    def kill(self) -> None:
        """As a crash."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        return (self.directory / "log").read_text()


@contextmanager
def made_nats(address: str = "127.0.0.1") -> Iterator[NatsServer]:
    """A server that is set up and not started."""
    directory = Path(tempfile.mkdtemp(prefix="swg-nats-", dir="/tmp"))
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
    server = NatsServer(directory, port, address)
    try:
        make_bus(directory, listen=f"{address}:{port}", hosts=(address,), now=time.time())
        yield server
    finally:
        if server.process is not None:
            server.kill()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running_nats(address: str = "127.0.0.1") -> Iterator[NatsServer]:
    """A server from its making to its end."""
    with made_nats(address) as server:
        server.start()
        yield server
