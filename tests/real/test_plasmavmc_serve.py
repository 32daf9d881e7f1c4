"""`plasmavmc serve` as root on a host with QEMU: an image and a VM over its socket, a server that is killed, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.leftovers import of_installation
from examples.demo.platform import qemu_processes
from plasmavmc.errors import ConflictError, UnavailableError
from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.host.configuration import FIRECRACKER
from plasmavmc.host.names import installation_key
from plasmavmc.rpc.api import Image, ImageOrder, Upload
from plasmavmc.rpc.client import EngineClient, connect
from plasmavmc.states import VmState
from plasmavmc.types import ExecSpec, FileSpec, LogStream, NetworkSpec, Scope, Vm, VmResources, VmSpec
from tests.contract.images_samples import chunked, entry, image, layer, oci_layout
from tests.real.guest_vm import compile_app
from tests.rpc.test_rpc_transport import ALICE, BOB, connects

pytestmark = pytest.mark.real

PLASMAVMC = str(Path(sys.executable).with_name("plasmavmc"))
READY_S, PATIENCE_S = 30.0, 60.0
HOME = Scope("default", "default")


@dataclass
class Server:
    """A server with directories of its own."""

    root: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def address(self) -> str:
        return f"unix:{self.root}/run/engine.sock"

    @property
    def log(self) -> str:
        return (self.root / "log").read_text()

    @property
    def key(self) -> str:
        return installation_key((self.data_dir / "installation").read_text().strip())

    def start(self, *flags: str) -> None:
        command = [PLASMAVMC, "serve", "--data-dir", str(self.data_dir), "--socket", f"{self.root}/run/engine.sock"]
        with (self.root / "log").open("ab") as output:
            mark = output.tell()
            self.process = subprocess.Popen([*command, *flags], stdout=output, stderr=output, start_new_session=True)
        deadline = time.monotonic() + READY_S
        while b"is ready" not in (self.root / "log").read_bytes()[mark:]:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL for both processes of the server, at once."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        pids = [int(child) for child in children if "qemu" not in Path(f"/proc/{child}/cmdline").read_text()]
        for pid in (*pids, self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None


@contextmanager
def scratch() -> Iterator[Server]:
    """A server that was not started yet; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="pvm-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        server = Server(Path(name))
        try:
            yield server
        except BaseException:
            print(server.log[-8000:])
            raise
        finally:
            if server.process is None:
                server.start()
            server.stop()
            assert of_installation(server.data_dir) == frozenset()


async def reached(client: EngineClient, vm_id: str, state: VmState) -> Vm:
    deadline = time.monotonic() + PATIENCE_S
    while (vm := await client.vms.get(vm_id)).status.state is not state:
        assert time.monotonic() < deadline, vm.status
        assert vm.status.state is not VmState.FAILED, vm.status
        await asyncio.sleep(0.05)
    return vm


async def told(client: EngineClient, *command: str) -> tuple[str, int]:
    """What a command wrote, and its code."""
    session = await client.vms.exec("vm_real", ExecSpec(command))
    items = [item async for item in session.output()]
    written = b"".join(item.data for item in items if isinstance(item, ExecOutput))
    assert isinstance(items[-1], ExecExit)
    return written.decode(), items[-1].code


def spec(image_name: str) -> VmSpec:
    return VmSpec(
        id="vm_real",
        scope=HOME,
        name="real",
        image=image_name,
        command=("serve",),
        env={"TOKEN": "canary-value"},
        files=(FileSpec("/etc/greeting", b"from the host"),),
        resources=VmResources(memory_bytes=128 << 20),
        networks=(NetworkSpec("", "net_1"),),
    )


async def register(client: EngineClient, directory: Path) -> Image:
    sample = image(layer(entry("app", compile_app(directory), mode=0o755)), config={"Entrypoint": ["/app"]})
    order = ImageOrder(HOME, Upload.TAR, "app:v1")
    last = [each async for each in client.images.register(order, chunked(oci_layout(sample)))][-1]
    assert isinstance(last, Image)
    return last


async def created(client: EngineClient, wanted: VmSpec) -> None:
    """Create and start it; where the host is still being probed, again until it is known."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await client.vms.create(wanted, start=True)
            except UnavailableError:
                await asyncio.sleep(0.2)
            else:
                return


async def first_life(server: Server, directory: Path) -> Vm:
    async with connect(server.address) as client:
        backends = (await client.nodes.get()).backends
        assert [backend.name for backend in backends] == ["kvm", "firecracker", "wasm"]
        installed = await asyncio.to_thread(Path(FIRECRACKER).exists)
        assert installed or backends[1].reason == f"{FIRECRACKER} is not installed"
        registered = await register(client, directory)
        assert registered.names == ("app:v1",)
        await created(client, spec("app:v1"))
        vm = await reached(client, "vm_real", VmState.RUNNING)
        assert vm.spec.image == registered.digest
        assert vm.status.guest_ready
        assert vm.status.usage.memory_rss_bytes > 0
        assert vm.status.usage.disk_bytes > 0
        assert await told(client, "/app", "show", "/etc/greeting") == ("/etc/greeting 644 from the host\n", 0)
        assert (await told(client, "/app", "exit", "9"))[1] == 9
        return vm


async def second_life(server: Server, before: Vm) -> None:
    async with connect(server.address) as client:
        vm = await reached(client, "vm_real", VmState.RUNNING)
        assert vm.status.since == before.status.since, "it never ended"
        assert vm.status.endpoints == before.status.endpoints
        assert (await told(client, "/app", "exit", "3"))[1] == 3
        lines = [line async for line in client.vms.logs("vm_real")]
        assert [(line.stream, line.text) for line in lines] == [
            (LogStream.STDOUT, "serving"),
            (LogStream.STDERR, "an error line"),
        ]
        with pytest.raises(ConflictError, match="never written to a disk"):
            await client.vms.restart("vm_real")
        with pytest.raises(ConflictError, match="made from image"):
            await client.images.delete("app:v1")


def policy_of(server: Server) -> Path:
    """Root may do everything, Alice may look."""
    path = server.root / "policy.toml"
    path.write_text(
        '[[principals]]\nname = "root"\nunix_uid = 0\ngrants = [{ role = "admin" }]\n'
        'home = { org = "default", project = "default" }\n'
        f'[[principals]]\nname = "alice"\nunix_uid = {ALICE}\ngrants = [{{ role = "viewer" }}]\n'
    )
    path.chmod(0o644)
    return path


def secrets_on_disk(directory: Path, secrets: Sequence[bytes]) -> list[Path]:
    return [
        path
        for path in directory.rglob("*")
        if path.is_file() and "disks" not in path.parts and any(secret in path.read_bytes() for secret in secrets)
    ]


def test_a_vm_outlives_its_server_and_ends_with_the_one_that_is_asked_to(tmp_path: Path) -> None:
    with scratch() as server:
        server.start()
        before = asyncio.run(first_life(server, tmp_path))
        vmms = qemu_processes(server.key)
        assert len(vmms) == 1
        server.kill()
        assert qemu_processes(server.key) == vmms
        assert secrets_on_disk(server.data_dir, [b"canary-value", b"from the host"]) == []
        server.start("--policy", str(policy_of(server)))
        assert qemu_processes(server.key) == vmms, "the same process, adopted"
        asyncio.run(second_life(server, before))
        alices = server.root / "run" / f"engine-{ALICE}.sock"
        assert connects(alices, ALICE)
        assert not connects(alices, BOB)
        assert not connects(server.root / "run" / "engine.sock", ALICE)
        assert "canary-value" not in server.log
        assert "Traceback" not in server.log
        assert server.stop() == 0, server.log
        assert qemu_processes(server.key) == {}
        assert of_installation(server.data_dir) == frozenset()


def test_only_root_starts_it_and_a_bad_policy_is_told(tmp_path: Path) -> None:
    def refused(*command: str) -> str:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert result.returncode == 1
        assert "Traceback" not in result.stdout + result.stderr
        return result.stderr

    with scratch() as server:
        arguments = ("serve", "--data-dir", str(server.data_dir), "--socket", f"{server.root}/run/engine.sock")
        as_nobody = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
        assert "must be started as root" in refused(*as_nobody, PLASMAVMC, *arguments)
        assert "mutual TLS only" in refused(PLASMAVMC, *arguments, "--listen", "127.0.0.1:0")
        policy = server.root / "policy.toml"
        policy.write_text("[[principals]]\nname = 7\n")
        policy.chmod(0o644)
        assert "the policy cannot be used" in refused(PLASMAVMC, *arguments, "--policy", str(policy))
        policy.chmod(0o666)
        assert "could be written by others" in refused(PLASMAVMC, *arguments, "--policy", str(policy))
