"""What a platform must not leave on a host: processes, interfaces, mounts, cgroups, firewall tables under our names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from examples.demo.platform import qemu_processes
from plasmavmc.host.names import installation_key
from plasmavmc.network.dns.keeper import MODULE as RESOLVER


def _daemons(key: str) -> set[str]:
    """HAProxy and the resolver."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            kind = "resolver" if RESOLVER in words else Path(words[0]).name
            if kind in ("resolver", "haproxy") and any(key in word for word in words):
                found.add(f"{kind} {entry.name}")
    return found


def _cgroups(key: str) -> set[str]:
    root = Path("/sys/fs/cgroup")
    return {f"cgroup {path}" for depth in ("*", "*/*", "*/*/*") for path in root.glob(depth) if key in path.name}


def _tables(key: str) -> set[str]:
    if os.geteuid() != 0:
        return set()
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    return {f"nft {line}" for line in listed.splitlines() if key in line}


def of_installation(data_dir: Path) -> frozenset[str]:
    """Everything on this host that carries the names of the installation with this data directory."""
    key = installation_key((data_dir / "installation").read_text().strip())
    interfaces = {f"interface {name}" for name in os.listdir("/sys/class/net") if name.startswith(f"swg{key[:4]}")}  # noqa: PTH208
    mounts = {f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines() if key in line}
    vms = {f"qemu {pid} {name}" for pid, name in qemu_processes(key).items()}
    return frozenset(interfaces | mounts | vms | _daemons(key) | _cgroups(key) | _tables(key))
