"""One scenario for a VMM with Firecracker's API, run against the stand-in and against the real program.

What is seen is kept in words that two runs share: status, shape of the body (names and types, no texts), exit code, names
of files left. It speaks HTTP by itself, so that it does not judge our client by our client.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.contract.tiny_kernel import idle, reset

DEADLINE_S = 20.0
HANG_S = 0.5
API, VSOCK = "api.sock", "v.sock"
MACHINE = {"vcpu_count": 1, "mem_size_mib": 64}
FULL = {"snapshot_path": "state", "mem_file_path": "memory", "snapshot_type": "Full"}
LOAD = {"snapshot_path": "state", "mem_backend": {"backend_type": "File", "backend_path": "memory"}}

Seen = list[list[Any]]


def shape(value: Any) -> Any:
    """Names and types of a JSON value; of a state its very word."""
    if isinstance(value, dict):
        return {name: inner if name == "state" else shape(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value).__name__


class Vmm:
    """A VMM in a directory, and what is seen of it."""

    def __init__(self, program: Sequence[str], directory: Path, environment: dict[str, str]) -> None:
        self._program = program
        self._environment = environment
        self.directory = directory
        self._directory_fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        self.seen: Seen = []
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, *arguments: str, wait: bool = True) -> None:
        """Start it; its API listens afterwards."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._program, *(arguments or ("--api-sock", API, "--id", "one"))],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self._environment,
            )
        if wait:
            self._connect().close()

    def note(self, *what: Any) -> None:
        self.seen.append(list(what))

    def call(self, method: str, path: str, body: Any = None) -> None:
        """A call on a connection of its own."""
        data = b"" if body is None else json.dumps(body).encode()
        with self._connect() as connection:
            connection.sendall(head(method, path, data) + data)
            self.note(f"{method} {path} {'' if body is None else json.dumps(body)}".strip(), *answer(connection))

    def raw(self, name: str, data: bytes) -> None:
        with self._connect() as connection:
            connection.sendall(data)
            self.note(name, *answer(connection))

    def too_many_connections(self) -> None:
        """Ten are held; what does the eleventh hear?"""
        with ExitStack() as held:
            for _ in range(10):
                held.enter_context(self._connect())
            time.sleep(0.2)  # it must have accepted them all
            with self._connect() as connection:
                self.note("the eleventh connection", *answer(connection))
        time.sleep(0.2)

    def vsock(self, port: int) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(HANG_S)
            connection.connect(self._short(VSOCK))
            connection.sendall(b"CONNECT %d\n" % port)
            try:
                said = connection.recv(64)
                self.note("CONNECT", "answered" if said else "closed")
            except TimeoutError:
                self.note("CONNECT", "no answer")

    def exits(self, number: int | None = None) -> None:
        """It ends, by itself or by a signal; what is left?"""
        assert self._process is not None
        if number is not None:
            self._process.send_signal(number)
        code = self._process.wait(DEADLINE_S)
        left = sorted(path.name for path in self.directory.glob("*.sock"))
        self.note("exit", code, "left", left)
        self._process = None

    def lives(self) -> None:
        """A failing call must not have ended it."""
        assert self._process is not None
        time.sleep(0.3)
        self.note("lives", self._process.poll() is None)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.directory / name).unlink()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for path in self.directory.glob("*.sock"):
            path.unlink()
        os.close(self._directory_fd)

    def _short(self, name: str) -> str:
        """A path of a socket that is not too long for one."""
        return f"/proc/self/fd/{self._directory_fd}/{name}"

    def _connect(self) -> socket.socket:
        """The file is there before it listens."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(DEADLINE_S)
            try:
                connection.connect(self._short(API))
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
            else:
                return connection
            assert self._process is not None
            assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)


def head(method: str, path: str, data: bytes) -> bytes:
    length = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n{length}\r\n".encode()


def answer(connection: socket.socket) -> list[Any]:
    """Status, shape of the body, and whether it says that what was asked is deprecated."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(65536)
        if not data:
            return ["closed"]
        received += data
    top, _, body = received.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    what: list[Any] = [int(lines[0].split()[1]), _shape_of(body) if body else None]
    return [*what, "deprecated"] if headers.get("deprecation") == "true" else what


def _shape_of(body: bytes) -> Any:
    try:
        return shape(json.loads(body))
    except ValueError:
        return "no JSON"


def before_the_start(vmm: Vmm) -> None:
    vmm.spawn()
    vmm.call("GET", "/")
    vmm.call("GET", "/version")
    vmm.call("GET", "/machine-config")
    vmm.call("PUT", "/machine-config", MACHINE | {"surprise": 1})
    vmm.call("PUT", "/machine-config", {"vcpu_count": 0, "mem_size_mib": 64})
    vmm.call("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 64})
    vmm.call("PUT", "/machine-config", {"vcpu_count": 1})
    vmm.call("PUT", "/machine-config")
    vmm.call("GET", "/machine-config", MACHINE)
    vmm.call("PUT", "/boot-source", {"kernel_image_path": "nothing"})
    vmm.call("PUT", "/drives/a", {"drive_id": "b", "path_on_host": "disk", "is_root_device": False})
    vmm.call("PUT", "/drives/a-b", {"drive_id": "a-b", "path_on_host": "disk", "is_root_device": False})
    vmm.call("PUT", "/drives/a", {"drive_id": "a", "path_on_host": "nothing", "is_root_device": False})
    vmm.call("PUT", "/snapshot/load", LOAD | {"clock_realtime": True})
    vmm.call("PATCH", "/vm", {"state": "Paused"})
    vmm.call("PUT", "/snapshot/create", FULL)
    vmm.call("PUT", "/actions", {"action_type": "InstanceStart"})
    vmm.call("PUT", "/actions", {"action_type": "FlushMetrics"})
    vmm.call("PUT", "/actions", {"action_type": "Dance"})
    vmm.call("GET", "/nowhere")
    vmm.call("DELETE", "/vsock")
    vmm.call("PATCH", "/drives/a", {"drive_id": "a", "path_on_host": "disk"})
    vmm.call("PUT", "/mmds/config", {"network_interfaces": ["eth0"]})
    vmm.raw("no HTTP", b"what is this\r\n\r\n")
    vmm.raw("a body that is no JSON", head("PUT", "/machine-config", b"{...") + b"{...")
    vmm.too_many_connections()
    vmm.lives()
    vmm.exits(signal.SIGTERM)


def made(vmm: Vmm, kernel: str = "idle") -> None:
    """All that makes a VM."""
    vmm.spawn()
    vmm.call("PUT", "/metrics", {"metrics_path": "metrics"})
    vmm.call("PUT", "/metrics", {"metrics_path": "metrics"})
    vmm.call("PUT", "/machine-config", MACHINE)
    vmm.call("PUT", "/boot-source", {"kernel_image_path": kernel, "boot_args": "quiet"})
    limiter = {"bandwidth": {"size": 1000, "refill_time": 100}, "ops": {"size": 10, "refill_time": 100}}
    drive = {"path_on_host": "disk", "is_read_only": False, "rate_limiter": limiter}
    vmm.call("PUT", "/drives/a", {"drive_id": "a", "is_root_device": True, **drive})
    vmm.call("PUT", "/drives/b", {"drive_id": "b", "is_root_device": True, **drive})
    vmm.call("PUT", "/drives/c", {"drive_id": "c", "is_root_device": False, **drive})
    vmm.call("PUT", "/entropy", {})
    vmm.call("PUT", "/vsock", {"guest_cid": 3, "uds_path": VSOCK})


def a_life(vmm: Vmm) -> None:
    made(vmm)
    vmm.call("PUT", "/actions", {"action_type": "InstanceStart"})
    vmm.call("GET", "/")
    vmm.call("PUT", "/actions", {"action_type": "InstanceStart"})
    vmm.call("PUT", "/machine-config", MACHINE)
    vmm.call("PUT", "/boot-source", {"kernel_image_path": "idle"})
    vmm.call("PUT", "/vsock", {"guest_cid": 3, "uds_path": VSOCK})
    vmm.call("PUT", "/snapshot/load", LOAD)
    vmm.call("PUT", "/actions", {"action_type": "FlushMetrics"})
    vmm.vsock(1024)
    vmm.call("PUT", "/snapshot/create", FULL)
    vmm.call("PATCH", "/vm", {"state": "Paused"})
    vmm.call("PATCH", "/vm", {"state": "Paused"})
    vmm.call("GET", "/")
    vmm.call("PUT", "/snapshot/create", FULL | {"snapshot_type": "Diff"})
    vmm.call("PUT", "/snapshot/create", FULL | {"snapshot_path": "no/such"})
    vmm.call("PUT", "/snapshot/create", FULL)
    vmm.call("PUT", "/snapshot/create", FULL)
    vmm.call("PATCH", "/vm", {"state": "Resumed"})
    vmm.call("PATCH", "/vm", {"state": "Resumed"})
    vmm.call("GET", "/")
    vmm.exits(signal.SIGKILL)
    loaded_again(vmm)


def loaded_again(vmm: Vmm) -> None:
    """The snapshot of before, in fresh processes."""
    vmm.remove(API)
    vmm.spawn()
    vmm.call("PUT", "/snapshot/load", LOAD)  # the socket of the vsock is still there
    vmm.exits()
    vmm.remove(API, VSOCK)
    vmm.spawn()
    vmm.call("PUT", "/snapshot/load", {"snapshot_path": "state"})
    vmm.call("PUT", "/snapshot/load", LOAD | {"surprise": 1})
    vmm.lives()
    vmm.call("PUT", "/snapshot/load", LOAD | {"enable_diff_snapshots": True})
    vmm.call("GET", "/")
    vmm.call("PUT", "/snapshot/create", FULL | {"snapshot_type": "Diff", "mem_file_path": "difference"})
    vmm.call("PATCH", "/vm", {"state": "Resumed"})
    vmm.call("GET", "/")
    vmm.call("PUT", "/snapshot/load", LOAD)
    vmm.lives()
    vmm.vsock(1024)
    vmm.exits(signal.SIGTERM)


def snapshots_that_cannot_be_loaded(vmm: Vmm) -> None:
    vmm.spawn()
    vmm.call("PUT", "/snapshot/load", LOAD | {"snapshot_path": "nothing"})
    vmm.exits()
    (vmm.directory / "state").write_bytes(b"damaged" * 100)
    (vmm.directory / "memory").write_bytes(bytes(4096))
    vmm.remove(API)
    vmm.spawn()
    vmm.call("PUT", "/snapshot/load", LOAD)
    vmm.exits()
    vmm.remove(API)
    vmm.spawn()
    vmm.call("PUT", "/machine-config", MACHINE)
    vmm.call("PUT", "/snapshot/load", LOAD)
    vmm.lives()
    vmm.exits(signal.SIGKILL)


def a_reset(vmm: Vmm) -> None:
    made(vmm, "reset")
    vmm.call("PUT", "/actions", {"action_type": "InstanceStart"})
    vmm.exits()


def a_kernel_that_is_none(vmm: Vmm) -> None:
    made(vmm, "disk")
    vmm.call("PUT", "/actions", {"action_type": "InstanceStart"})
    vmm.lives()
    vmm.call("GET", "/")
    vmm.exits(signal.SIGKILL)


def bad_starts(vmm: Vmm) -> None:
    (vmm.directory / API).touch()
    vmm.spawn(wait=False)
    vmm.exits()
    vmm.remove(API)
    vmm.spawn("--dance", wait=False)
    vmm.exits()
    vmm.spawn("--api-sock", API, "--id", "under_score", wait=False)
    vmm.exits()


ACTS: tuple[Callable[[Vmm], None], ...] = (
    before_the_start,
    a_life,
    snapshots_that_cannot_be_loaded,
    a_reset,
    a_kernel_that_is_none,
    bad_starts,
)


def as_record(seen: dict[str, Seen]) -> str:
    """What was seen, as `firecracker_1_12_1.json` keeps it: a line for each step."""
    acts = ((act, ",\n".join(f"    {json.dumps(line)}" for line in lines)) for act, lines in seen.items())
    return "{\n" + ",\n".join(f"  {json.dumps(act)}: [\n{lines}\n  ]" for act, lines in acts) + "\n}\n"


def perform(program: Sequence[str], directory: Path, environment: dict[str, str]) -> dict[str, Seen]:
    """The whole scenario; what was seen, by act."""
    seen: dict[str, Seen] = {}
    for act in ACTS:
        place = directory / act.__name__
        place.mkdir()
        (place / "idle").write_bytes(idle())
        (place / "reset").write_bytes(reset())
        (place / "disk").write_bytes(bytes(1 << 20))
        (place / "metrics").touch()
        vmm = Vmm(program, place, environment)
        try:
            act(vmm)
        finally:
            vmm.close()
        seen[act.__name__] = vmm.seen
    return seen
