"""The floor's surroundings: a bridge and tap, a disk, the guest's configuration, and the stopwatch."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType

from plasmavmc.guest.api import GuestConfig, GuestNetwork
from plasmavmc.guest.boot import load_assets
from plasmavmc.guest.framing import FrameDecoder, FrameType, encode, sync
from plasmavmc.guest.kernel import Kernel
from plasmavmc.guest.messages import encode_config
from plasmavmc.guest.tsc import tsc_khz

SCRIPT = Path(__file__).with_name("qemu.sh")
CACHE = Path(os.environ.get("SHELLWEGO_CACHE", "/var/cache/shellwego"))
BRIDGE, TAP, MAC = "flrbr0", "flrtap0", "02:00:00:00:77:02"
GATEWAY, GUEST = IPv4Address("10.127.77.1"), IPv4Address("10.127.77.2")
PART = 32 * 1024
LISTEN_EVERY_S = 0.002


CONNECT_S = 0.02
"""A guest that is not up yet answers no SYN, and the kernel sends the next one a second later: so it is asked anew, and what
is measured is no multiple of a longer wait. A guest that is up answers within a millisecond or two."""


def get(address: str, port: int, host: str) -> bool:
    """One request; true for an answer of 200."""
    try:
        with socket.create_connection((address, port), timeout=CONNECT_S) as connection:
            connection.settimeout(10)
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def until_200(address: str, port: int, host: str, began: float, limit_s: float = 120.0) -> float:
    """Poll every 5 ms; seconds from `began` to the first 200."""
    while not get(address, port, host):
        if time.monotonic() - began > limit_s:
            raise RuntimeError(f"no answer from {address}:{port} ({host}) within {limit_s} s")
        time.sleep(0.005)
    return time.monotonic() - began


class Hand:
    """A microVM started by hand, again and again, while the context is open."""

    def __init__(self, directory: Path, rootfs: Path, argv: tuple[str, ...], memory: str = "256M") -> None:
        self._directory = directory
        self._rootfs = rootfs
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._nonce = os.urandom(16)
        self.boot_s = 0.0
        """Of the last start: from the fork to the guest's word that its workload runs."""
        config = encode_config(GuestConfig(argv=argv, network=GuestNetwork(GUEST, GATEWAY), entropy=os.urandom(64)))
        parts = [encode(FrameType.CONFIG_PART, config[at : at + PART]) for at in range(0, len(config), PART)]
        self._config = sync(self._nonce, fresh=True) + b"".join(parts) + encode(FrameType.CONFIG_END)

    def __enter__(self) -> Hand:
        for command in (
            ("link", "add", BRIDGE, "type", "bridge"),
            ("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE),
            ("link", "set", BRIDGE, "up"),
            ("tuntap", "add", TAP, "mode", "tap"),
            ("link", "set", TAP, "master", BRIDGE, "up"),
            ("neigh", "add", str(GUEST), "lladdr", MAC, "dev", BRIDGE, "nud", "permanent"),
        ):
            subprocess.run(["ip", *command], check=True)
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "config").write_bytes(self._config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for name in (TAP, BRIDGE):
            subprocess.run(["ip", "link", "del", name], check=False)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> float:
        """From the fork to the first 200, in seconds; disk and tap are there already."""
        assets = load_assets(CACHE)
        layer = self._directory / "layer"
        (self._directory / "heard").unlink(missing_ok=True)
        template = next((CACHE / "disks").glob("ext4-4294967296-*"))
        subprocess.run(["cp", "--sparse=always", str(template), str(layer)], check=True)
        environment = {
            "PATH": "/usr/bin:/bin",
            "KERNEL": str(assets.kernel),
            "ACPI": "off" if Kernel(assets.kernel.parent).own else "on",
            "INITRD": str(assets.initrd),
            "ROOT": str(self._rootfs),
            "LAYER": str(layer),
            "TAP": TAP,
            "MAC": MAC,
            "MEMORY": self._memory,
            "TSC_KHZ": str(tsc_khz()),
            "CONFIG": str(self._directory / "config"),
            "DIR": str(self._directory),
        }
        began = time.monotonic()
        self._process = subprocess.Popen(
            [str(SCRIPT)], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        listener = threading.Thread(target=self._hear_ready, args=(self._process, began))
        listener.start()
        took = until_200(str(GUEST), 8080, "floor", began)
        listener.join()
        return took

    def _hear_ready(self, process: subprocess.Popen[bytes], began: float) -> None:
        heard, decoder = self._directory / "heard", FrameDecoder(self._nonce)
        while not heard.exists() and process.poll() is None:
            time.sleep(LISTEN_EVERY_S)
        with heard.open("rb") as stream:
            while process.poll() is None:
                if any(frame.type == FrameType.READY for frame in decoder.feed(stream.read())):
                    self.boot_s = time.monotonic() - began
                    return
                time.sleep(LISTEN_EVERY_S)

    def stop(self) -> None:
        """End it, with the helper that gave it its configuration."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def built_rootfs(data_dir: Path, directory: Path) -> Path:
    """A copy of the one root file system that a platform has built."""
    copy = directory / "root.squashfs"
    shutil.copy(next((data_dir / "images").rglob("rootfs.squashfs")), copy)
    return copy
