"""A stand-in for Firecracker: a program of its own with the same API, states, exit codes and leftovers, and no guest.

Its behaviour was recorded from the real 1.12.1 (`firecracker_1_12_1.json`); `test_firecracker_fake.py` holds it to that.
What goes wrong, and what stands for the guest, is told by the environment variable `FAKE_FIRECRACKER` (`Behaviour`, JSON).

Run it as `python -m tests.contract.fake_firecracker --api-sock PATH --id ID`.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import errno
import json
import os
import re
import signal
import socket
import struct
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests.contract.firecracker_api import deprecated, faults, request_key

VARIABLE = "FAKE_FIRECRACKER"
MOST_CONNECTIONS = 10
GENERIC_ERROR, BAD_ARGUMENTS = 1, 153
_RESETS = b"\x66\xba\x64\x00\xb0\xfe\xee"
"""Code that resets the CPU by the keyboard controller (`tiny_kernel.reset`)."""
_PR_SET_PDEATHSIG = 1
FREEZE, THAW, READY, FROZEN, THAWED = 6, 7, 65, 69, 70
"""Frames of the guest's channel (docs/design/guest-channel.md)."""
_SYNC = 32
"""What begins a connection, after zeros: magic and nonce."""


_IN_JAIL = bool(json.loads(os.environ.get(VARIABLE, "{}")).get("root"))


@dataclass(frozen=True)
class Behaviour:
    version: str = "1.12.1"
    root: str = ""
    """Stands for `/`, as a jail would."""
    guest: tuple[str, ...] = ()
    """A program that speaks as the guest's init does, to whoever connects to the listening socket whose number is its last
    argument. Without one the guest has no driver for its vsock."""
    refuses: bool = False
    """The guest has a driver, and nothing listens."""
    listen_after_s: float = 0.03
    """From the socket's file to the first connection."""
    slow: dict[str, float] = field(default_factory=dict)
    """Seconds that a call takes, by path. All others wait for it."""
    killed_at: str = ""
    """SIGKILL in the middle of a call of this path."""


def within(path: str) -> Path:
    """A path as the VMM sees it. In a stand-in for a jail, its root is the directory that we are in."""
    return Path(path.lstrip("/")) if _IN_JAIL else Path(path)


class Refused(Exception):
    """400, with words of the VMM's."""


class Dies(Refused):
    """400, and then it ends."""


class NoHttp(Exception):
    """400, with words of its HTTP server's."""


class Machine:
    """The state behind the API."""

    def __init__(self, behaviour: Behaviour, name: str) -> None:
        self.behaviour = behaviour
        self.id = name
        self.state = "Not started"
        self.config: dict[str, Any] = {}
        self.drives: dict[str, dict[str, Any]] = {}
        self.tracks_dirty = False
        self.has_metrics = False
        self.guest: asyncio.subprocess.Process | None = None
        self._guest_port: bytes | str | None = None
        """Address of the guest's listener, in the kernel's own name space."""
        self._runs = asyncio.Event()
        self._said: list[list[str]] = []
        """What the host wrote to the guest, by connection, in hexadecimal: a guest that is told the same is the same."""
        self._ways: set[asyncio.Task[None]] = set()
        self._cuts = False
        """A snapshot was taken: connections do not outlive it."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def get(self, path: str) -> Any:
        match path:
            case "/":
                return {
                    "id": self.id,
                    "state": self.state,
                    "vmm_version": self.behaviour.version,
                    "app_name": "Firecracker",
                }
            case "/version":
                return {"firecracker_version": self.behaviour.version}
            case "/machine-config":
                rest = {"smt": False, "track_dirty_pages": False, "huge_pages": "None"}
                return {"vcpu_count": 1, "mem_size_mib": 128, **rest} | self.config.get("machine-config", {})
            case _:
                raise Refused("Invalid request method and/or path: GET.")

    async def change(self, method: str, path: str, body: Any) -> None:
        """Do what is asked."""
        wrong = faults(method, path, body, self.behaviour.version)
        if wrong:
            raise Refused(f"An error occurred when deserializing the json body of a request: {wrong[0]}.")
        if path == "/vm":
            self._run_or_pause(body["state"])
        elif path == "/snapshot/create":
            self._create_snapshot(body)
        elif path == "/actions":
            await self._act(body["action_type"])
        elif path == "/metrics":
            self._open_metrics(body["metrics_path"])
        elif self.state != "Not started":
            raise Refused("The requested operation is not supported after starting the microVM.")
        elif path == "/snapshot/load":
            await self._load_snapshot(body)
        else:
            await self._configure(path, body)

    async def _configure(self, path: str, body: dict[str, Any]) -> None:
        if path == "/boot-source":
            for name in ("kernel_image_path", "initrd_path"):
                if name in body and not within(body[name]).is_file():
                    raise Refused(f"The kernel file cannot be opened: {body[name]}")
        if path.startswith("/drives/"):
            self._configure_drive(body)
        if path == "/mmds/config":
            raise Refused("The list of network interfaces provided is invalid.")
        self.config[path.removeprefix("/")] = body
        if path == "/vsock":
            try:
                await self._open_vsock()
            except OSError as error:
                raise Refused(f"Cannot create the vsock's backend: {error.strerror}") from error

    def _configure_drive(self, body: dict[str, Any]) -> None:
        if not within(body["path_on_host"]).is_file():
            raise Refused(f"Unable to open the block device backing file {body['path_on_host']}")
        others = (drive for name, drive in self.drives.items() if name != body["drive_id"])
        if body["is_root_device"] and any(drive["is_root_device"] for drive in others):
            raise Refused("A root block device already exists!")
        self.drives[body["drive_id"]] = body

    def _open_metrics(self, path: str) -> None:
        if self.has_metrics or not within(path).exists():
            raise Refused("Cannot initialize the metrics system.")
        self.has_metrics = True

    async def _act(self, action: str) -> None:
        started = self.state != "Not started"
        if action != "InstanceStart":
            if not started:
                raise Refused("The requested operation is not supported before starting the microVM.")
            return
        if started:
            raise Refused("The requested operation is not supported after starting the microVM.")
        if "boot-source" not in self.config:
            raise Refused("Cannot start microvm without kernel configuration.")
        kernel = within(self.config["boot-source"]["kernel_image_path"]).read_bytes()
        if not kernel.startswith(b"\x7fELF"):
            raise Refused("Cannot load kernel due to invalid memory configuration or invalid kernel image.")
        self.tracks_dirty = self.config.get("machine-config", {}).get("track_dirty_pages", False)
        self._begin(resume=True)
        if _RESETS in kernel:
            asyncio.get_running_loop().call_later(0.05, os._exit, 0)
        elif self.behaviour.guest:
            await self._boot()

    def _run_or_pause(self, wanted: str) -> None:
        if self.state == "Not started":
            raise Refused("The requested operation is not supported before starting the microVM.")
        self.state = "Paused" if wanted == "Paused" else "Running"
        if wanted == "Paused":
            self._runs.clear()
        else:
            self._runs.set()
            for way in self._ways if self._cuts else ():
                way.cancel()
            self._cuts = False
        if self.guest is not None:
            with suppress(ProcessLookupError):
                self.guest.send_signal(signal.SIGSTOP if wanted == "Paused" else signal.SIGCONT)

    # Snapshots

    def _create_snapshot(self, body: dict[str, Any]) -> None:
        if self.state != "Paused":
            raise Refused("Create snapshot error: the microVM is not paused.")
        if body.get("snapshot_type") == "Diff" and not self.tracks_dirty and self.behaviour.version.startswith("1.12."):
            raise Refused("Diff snapshots are not allowed on uVMs with dirty page tracking disabled.")
        kept = json.dumps({"config": self.config, "drives": self.drives, "said": self._said}).encode()
        size = self.config.get("machine-config", {}).get("mem_size_mib", 128) << 20
        try:
            with within(body["mem_file_path"]).open("wb") as memory:
                memory.truncate(size)
            if self.behaviour.killed_at == "/snapshot/create":
                os.kill(os.getpid(), signal.SIGKILL)
            within(body["snapshot_path"]).write_bytes(zlib.crc32(kept).to_bytes(4, "big") + kept)
            self._cuts = True
        except OSError as error:
            raise Refused(f"Cannot create the snapshot: {error.strerror}") from error

    async def _load_snapshot(self, body: dict[str, Any]) -> None:
        if ("mem_backend" in body) == ("mem_file_path" in body):
            raise Refused("too few fields: either `mem_backend` or `mem_file_path` must be specified")
        if self.config or self.drives:
            raise Refused("Loading a microVM snapshot not allowed after configuring boot-specific resources.")
        memory = body.get("mem_backend", {}).get("backend_path") or body["mem_file_path"]
        try:
            content = within(body["snapshot_path"]).read_bytes()
            if zlib.crc32(content[4:]) != int.from_bytes(content[:4], "big"):
                raise Dies("Failed to restore from snapshot: CRC64 validation failed.")
            if not within(memory).is_file():
                raise Dies("Failed to restore from snapshot: no memory file.")
            kept = json.loads(content[4:])
            self.config, self.drives, self._said = kept["config"], kept["drives"], kept["said"]
            await self._open_vsock()
        except OSError as error:
            raise Dies(f"Failed to restore from snapshot: {error.strerror}") from error
        self.tracks_dirty = bool(body.get("enable_diff_snapshots") or body.get("track_dirty_pages"))
        if self.behaviour.guest:
            await self._boot()
            await self._tell_again()
        self._begin(resume=body.get("resume_vm", False))

    def _begin(self, *, resume: bool) -> None:
        self.state = "Running"
        self._run_or_pause("Resumed" if resume else "Paused")

    # The guest and the way to it

    async def _open_vsock(self) -> None:
        if "vsock" in self.config:
            path = within(self.config["vsock"]["uds_path"])
            if path.exists():
                raise OSError(errno.EADDRINUSE, "Address in use")
            await asyncio.start_unix_server(self._vsock, path)

    async def _boot(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("")
            listener.listen()
            self._guest_port = listener.getsockname()
            self.guest = await asyncio.create_subprocess_exec(
                *self.behaviour.guest,
                str(listener.fileno()),
                pass_fds=(listener.fileno(),),
                stdout=asyncio.subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
            )
        self._keep(asyncio.create_task(self._watch(self.guest)))

    async def _watch(self, guest: asyncio.subprocess.Process) -> None:
        """A guest that switches itself off resets the CPU."""
        await guest.wait()
        await asyncio.sleep(0.02)  # what it said last is on its way
        os._exit(0)

    async def _vsock(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if not re.fullmatch(rb"CONNECT \d{1,10}\n", line) or self.behaviour.refuses:
            writer.close()
            return
        if self._guest_port is None:
            await asyncio.Event().wait()
        await self._runs.wait()
        assert self._guest_port is not None
        from_guest, to_guest = await asyncio.open_unix_connection(self._guest_port)  # type: ignore[arg-type]
        writer.write(b"OK 1073741824\n")
        said: list[str] = []
        self._said.append(said)
        both = {
            asyncio.create_task(_carry(reader, to_guest, said)),
            asyncio.create_task(_carry(from_guest, writer, [])),
        }
        self._ways |= both
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ways -= both
            for way in both:
                way.cancel()
            to_guest.close()
            writer.close()

    async def _tell_again(self) -> None:
        """Make a new guest what the kept one was: it is told all that the other was told, each when it can hear it."""
        for said in self._said:
            told = bytes.fromhex("".join(said))
            reader, writer = await asyncio.open_unix_connection(self._guest_port)  # type: ignore[arg-type]
            at = len(told) - len(told.lstrip(b"\0")) + _SYNC
            writer.write(told[:at])
            await reader.readexactly(_SYNC)
            heard: set[int] = set()
            while at < len(told):
                length, kind, _, _ = struct.unpack_from("<IHHI", told, at)
                if kind == FREEZE:
                    await _hear(reader, heard, READY)
                writer.write(told[at : at + 12 + length])
                if kind in (FREEZE, THAW):
                    await _hear(reader, heard, FROZEN if kind == FREEZE else THAWED)
                at += 12 + length
            writer.close()

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _hear(reader: asyncio.StreamReader, heard: set[int], wanted: int) -> None:
    """Read what a guest says until it has said a frame of this kind, now or before."""
    while wanted not in heard:
        length, kind, _, _ = struct.unpack("<IHHI", await reader.readexactly(12))
        await reader.readexactly(length)
        heard.add(kind)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: list[str]) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            said.append(data.hex())
            writer.write(data)
            await writer.drain()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Api:
    """Its HTTP server: one call at a time, ten connections."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._one_at_a_time = asyncio.Lock()
        self._connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= MOST_CONNECTIONS:
            writer.write(_reply(503, {"error": "Too many open connections"}))
            writer.close()
            return
        self._connections += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    await writer.drain()
        finally:
            self._connections -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *rest = head.split("\r\n")
        found = re.fullmatch(r"(\S+) (\S+) HTTP/1\.1", first)
        if found is None or found[1] not in ("GET", "PUT", "PATCH"):
            writer.write(_reply(400, b'{"error":"Invalid HTTP Method\nor version."}'))
            return found is not None
        lengths = [line.partition(":")[2] for line in rest if line.lower().startswith("content-length:")]
        data = await reader.readexactly(int(lengths[0]) if lengths else 0)
        async with self._one_at_a_time:
            await self._answer(found[1], found[2], data, writer)
        return True

    async def _answer(self, method: str, path: str, data: bytes, writer: asyncio.StreamWriter) -> None:
        behaviour = self._machine.behaviour
        await asyncio.sleep(behaviour.slow.get(path, 0))
        extra = ""
        try:
            if (method == "GET") == bool(data):
                raise Refused(f"{method} request cannot have{'' if data else ' an empty'} body.")
            if method == "GET":
                writer.write(_reply(200, self._machine.get(path)))
                return
            if request_key(method, path) is None:
                raise Refused(f"Invalid request method and/or path: {method} {path}.")
            body = json.loads(data)
            if _is_deprecated(method, path, body, behaviour.version):
                extra = "Deprecation: true\r\n"
            await self._machine.change(method, path, body)
            writer.write(_reply(204, None, extra))
        except ValueError as error:
            writer.write(_reply(400, {"fault_message": f"deserializing the json body: {error}"}))
        except Refused as error:
            writer.write(_reply(400, {"fault_message": str(error)}, extra))
            if isinstance(error, Dies):
                await writer.drain()
                writer.close()
                await asyncio.sleep(0.01)
                os._exit(GENERIC_ERROR)


def _is_deprecated(method: str, path: str, body: Any, version: str) -> bool:
    if not isinstance(body, dict):
        return False
    first_metadata_service = path == "/mmds/config" and body.get("version", "V1") == "V1"
    return first_metadata_service or deprecated(method, path, body, version)


def _reply(status: int, body: Any, extra: str = "") -> bytes:
    reasons = {200: "OK", 204: "No Content", 400: "Bad Request", 503: "Service Unavailable"}
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    told = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
    head = (
        f"HTTP/1.1 {status} {reasons[status]}\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n{extra}{told}\r\n"
    )
    return head.encode() + data


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"Arguments parsing error: {message}", file=sys.stderr, flush=True)
        sys.exit(BAD_ARGUMENTS)


async def serve(path: Path, machine: Machine) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    await asyncio.sleep(machine.behaviour.listen_after_s)
    server = await asyncio.start_unix_server(Api(machine).serve, sock=listener, backlog=64)
    print(f"Listening on API socket ({path})", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = _Arguments()
    parser.add_argument("--api-sock", required=True)
    parser.add_argument("--id", required=True)
    options = parser.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", options.id):
        os.abort()
    given = json.loads(os.environ.get(VARIABLE, "{}"))
    behaviour = Behaviour(**given | {"guest": tuple(given.get("guest", ()))})
    if _IN_JAIL:
        os.chdir(behaviour.root)
    socket_path = within(options.api_sock)
    if socket_path.exists():
        print("Failed to open the API socket: it exists already", file=sys.stderr, flush=True)
        sys.exit(GENERIC_ERROR)
    asyncio.run(serve(socket_path, Machine(behaviour, options.id)))


if __name__ == "__main__":
    main()
