"""A real root helper for tests, in a network namespace of its own, that leaves nothing behind.

The namespace belongs to an anchor process and goes with it. Run directory, uids and installation id are the test's own,
so a platform that runs on the same machine is not touched; cgroups carry the installation's key.

Trap: installations of one host share the table of leased uids in its run directory, and whatever lives under a leased uid is
the VM's. With run directories of their own, tests that run at the same time need uids of their own too.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import IPv4Network
from pathlib import Path

from plasmavmc.errors import UnavailableError
from plasmavmc.host.client import HelperHost
from plasmavmc.host.configuration import FIRECRACKER, GUARDS, JAILER, QEMU, HelperConfiguration, Listener
from plasmavmc.host.operations import Keep
from plasmavmc.host.ports import PublishSite
from plasmavmc.host.rotation import SETTLE_S
from tests.contract.host_parts import HostRig

NOBODY = 65534
_UIDS_A_PROCESS = 64
_FIRST_UID = 2_001_000_000 + os.getpid() % 1_000_000 * _UIDS_A_PROCESS
UIDS = range(_FIRST_UID, _FIRST_UID + _UIDS_A_PROCESS)
LISTENER = Listener("127.0.0.1", 8099)
IN_USE = IPv4Network("10.127.0.0/20")
_HELPER = """
import json, socket, sys
from pathlib import Path
from plasmavmc.host.configuration import HelperConfiguration, Listener
from plasmavmc.host.helper.loop import run_helper
from plasmavmc.host.ports import PublishSite
told = json.loads(sys.argv[2])
run_helper(
    HelperConfiguration(
        told["id"], told["uid"], told["uid"], listeners=tuple(Listener(*pair) for pair in told["listeners"]),
        vm_uids=range(*told["uids"]), run_root=Path(told["run_root"]),
        firecracker=told["firecracker"], jailer=told["jailer"], jail_root=Path(told["jail_root"]),
        guards=tuple(told["guards"]),
        zfs=told["zfs"],
        publish=PublishSite(range(*told["publish"])),
        key_settle_s=told["key_settle_s"],
    ),
    socket.socket(fileno=int(sys.argv[1])),
)
"""

_WITHOUT_CGROUPS = ["unshare", "--mount", "sh", "-c", 'umount --recursive /sys/fs/cgroup && exec "$@"', "sh"]
"""Run a command on a host that gives no cgroups: they are taken out of its view."""


class Namespace:
    """A network namespace with loopback up, and a way to run commands in it."""

    def __init__(self) -> None:
        self._anchor = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self._anchor.stdout is not None
        assert self._anchor.stdout.readline() == b"up\n"

    @property
    def pid(self) -> int:
        return self._anchor.pid

    @property
    def enter(self) -> list[str]:
        # not `ip netns exec`, which mounts another /sys and hides the cgroups with it
        return ["nsenter", f"--net=/proc/{self._anchor.pid}/ns/net"]

    def run(self, *argv: str, check: bool = True) -> str:
        done = subprocess.run([*self.enter, *argv], capture_output=True, text=True, timeout=20, check=False)
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def links(self) -> set[str]:
        return {link["ifname"] for link in json.loads(self.run("ip", "-json", "link"))}

    def close(self) -> None:
        self._anchor.kill()
        self._anchor.wait()
        if self._anchor.stdout is not None:
            self._anchor.stdout.close()


class RealHelper:
    """A helper process and its client. `restart` is what a crash and a new start of the platform look like."""

    def __init__(
        self,
        namespace: Namespace,
        run_root: Path,
        *,
        cgroups: bool = True,
        firecracker: str = FIRECRACKER,
        jailer: str = JAILER,
        jail_root: Path | None = None,
        guards: tuple[str, ...] = GUARDS,
        zfs: str = "",
        publish: range = range(0),
        key_settle_s: float = SETTLE_S,
    ) -> None:
        self.namespace = namespace
        self._wrapper = [] if cgroups else _WITHOUT_CGROUPS
        self.configuration = HelperConfiguration(
            f"swg_{secrets.token_hex(8)}",
            NOBODY,
            NOBODY,
            listeners=(LISTENER,),
            vm_uids=UIDS,
            run_root=run_root,
            firecracker=firecracker,
            jailer=jailer,
            jail_root=jail_root or run_root.parent / "jails",
            guards=guards,
            zfs=zfs,
            publish=PublishSite(publish),
            key_settle_s=key_settle_s,
        )
        self.names = self.configuration.names
        self.start()

    def start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told = json.dumps(
            {
                "id": self.configuration.installation_id,
                "uid": NOBODY,
                "listeners": [[listener.address, listener.port] for listener in self.configuration.listeners],
                "uids": [self.configuration.vm_uids.start, self.configuration.vm_uids.stop],
                "run_root": str(self.configuration.run_root),
                "firecracker": self.configuration.firecracker,
                "jailer": self.configuration.jailer,
                "jail_root": str(self.configuration.jail_root),
                "guards": self.configuration.guards,
                "zfs": self.configuration.zfs,
                "publish": [self.configuration.publish.ports.start, self.configuration.publish.ports.stop],
                "key_settle_s": self.configuration.key_settle_s,
            }
        )
        with theirs:
            self.process = subprocess.Popen(
                [*self.namespace.enter, *self._wrapper, sys.executable, "-c", _HELPER, str(theirs.fileno()), told],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                extra_groups=[NOBODY],  # root's own groups, which no VMM may inherit
            )
        self.host = HelperHost(ours.detach())

    def stop(self) -> str:
        """Close the connection; the helper ends by itself. What it complained of."""
        self.host.close()
        _, complaints = self.process.communicate(timeout=10)
        return complaints.decode()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.stop()

    def restart(self) -> None:
        self.kill()
        self.start()

    def cgroups(self) -> set[str]:
        """The children of our parent cgroup, in any hierarchy."""
        parents = Path("/sys/fs/cgroup").glob(f"**/{self.names.cgroup}")
        return {child.name for parent in parents for child in parent.iterdir() if child.is_dir()}

    async def clean(self) -> None:
        """End everything of this installation, whatever state the test left it in."""
        if self.process.poll() is not None:
            self.stop()
            self.start()
        try:
            await self.host.sweep(Keep())
            await self.host.dismantle()
        except UnavailableError:
            self.restart()
            await self.host.sweep(Keep())
            await self.host.dismantle()
        finally:
            self.stop()


@asynccontextmanager
async def real_helper(
    tmp_path: Path,
    *,
    cgroups: bool = True,
    firecracker: str = FIRECRACKER,
    jailer: str = JAILER,
    jail_root: Path | None = None,
    guards: tuple[str, ...] = GUARDS,
    zfs: str = "",
    publish: range = range(0),
) -> AsyncIterator[RealHelper]:
    """One installation, alone in its namespace, in which `IN_USE` is a network of somebody else."""
    namespace = Namespace()
    try:
        namespace.run("ip", "link", "add", "other", "type", "bridge")
        namespace.run("ip", "addr", "add", f"{IN_USE[1]}/{IN_USE.prefixlen}", "dev", "other")
        helper = RealHelper(
            namespace,
            tmp_path / "run",
            cgroups=cgroups,
            firecracker=firecracker,
            jailer=jailer,
            jail_root=jail_root,
            guards=guards,
            zfs=zfs,
            publish=publish,
        )
        try:
            yield helper
        finally:
            await helper.clean()
    finally:
        namespace.close()


@contextmanager
def sleeper(*argv: str, uid: int = 0) -> Iterator[int]:
    """A process in a session of its own, with all that it starts."""
    process = subprocess.Popen(argv or ("sleep", "600"), user=uid, group=uid, start_new_session=True)
    try:
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rig_of(helper: RealHelper) -> HostRig:
    return HostRig(helper.host, helper.names, QEMU, LISTENER, IN_USE, UIDS)


async def eventually(holds: object, what: str, deadline_s: float = 10.0) -> None:
    """Poll a condition (a callable without arguments) until it holds."""
    assert callable(holds)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    while not holds():
        assert loop.time() < deadline, f"not within {deadline_s:g} s: {what}"
        await asyncio.sleep(0.02)
