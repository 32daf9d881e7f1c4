"""A volume on a running platform: written by one release, read by the next, grown in use, kept, copied and put back; and
what its host has of it is ciphertext, with its key nowhere but in memory.

Not covered, because it is so: the memory of a suspended VM on disk holds what its guest had read.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from examples.demo.images import hello
from examples.demo.platform import Platform, qemu_processes
from plasmavmc.storage.sparse import data_ranges
from shellwego.control.sealing import Sealer
from shellwego.control.unit import Control
from shellwego.core.volumes import key_label
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.kms.local import FileKms
from shellwego.drivers.store.sqlite import open_sqlite
from tests.real.platform_harness import api, kill_platform, platform_processes, scratch_platform, until

pytestmark = pytest.mark.real

APP = "shop"
FIRST, SECOND = "canary-first-3e7a", "canary-second-3e7a"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with scratch_platform() as made:
        made.swg("images", "load", "hello:v1", str(hello("v1")))
        made.swg("images", "load", "hello:v2", str(hello("v2")))
        made.swg("apps", "create", APP)
        made.swg("volumes", "create", "data", "--size", "64m")
        made.swg("volumes", "attach", "data", "-a", APP, "--path", "/data")
        yield made


def python(platform: Platform, script: str) -> str:
    """What a script prints in the app's VM."""
    return platform.swg("exec", "-a", APP, "--", "python3", "-c", script).strip()


def shown(platform: Platform, *how: str) -> Any:
    return json.loads(platform.swg("volumes", *how, "--json"))


def write(platform: Platform, text: str) -> None:
    python(platform, f"import os; f = open('/data/orders', 'w'); f.write({text!r}); f.flush(); os.fsync(f.fileno())")


def read(platform: Platform) -> str:
    return python(platform, "print(open('/data/orders').read())")


async def key_of(platform: Platform, name: str) -> bytes:
    """The volume's key, as whoever has the database and the master keys can have it."""
    clock = SystemClock()
    store = open_sqlite(platform.data_dir / "db" / "state.db", clock)
    kms = FileKms.open(platform.data_dir / "keys" / "master-keys.json")
    try:
        [(volume, project)] = await store.read(
            lambda tx: [(v, tx.projects.get(v.project_id)) for v in tx.volumes.select() if v.name == name]
        )
        assert volume.sealed_key is not None
        assert project is not None
        label = key_label(volume.id, project.organization_id, project.id)
        return (await Sealer(Control(store, MemoryBus(), clock), kms).unseal(volume.sealed_key, label)).reveal()
    finally:
        await store.close()


def holding(directory: Path, words: Iterable[bytes]) -> list[str]:
    """Files below a directory that hold one of the words. Holes are not read."""
    words, bad = tuple(words), []
    for path in directory.rglob("*"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                found = path.is_file() and any(
                    word in os.pread(file.fileno(), end - start, start)
                    for start, end in data_ranges(file.fileno())
                    for word in words
                )
            bad += [str(path)] if found else []
    return bad


def sees_nothing(platform: Platform) -> None:
    """Neither what the guest wrote nor its key is in a file, a command line, an environment, a log or an answer."""
    volumes = platform.data_dir / "volumes"
    stored = sum(path.stat().st_blocks for path in volumes.rglob("*") if path.is_file())
    assert stored > 0, "there is something to look into"
    assert holding(volumes, (FIRST.encode(), SECOND.encode())) == []
    key = asyncio.run(key_of(platform, "data"))
    assert key == asyncio.run(key_of(platform, "copy")), "a copy is a copy of the ciphertext"
    disguises = (key, key.hex().encode(), base64.b64encode(key).rstrip(b"="), repr(key)[2:-1].encode())
    places = (volumes, platform.data_dir / "logs", platform.data_dir / "vms", Path(f"/run/shellwego/{platform.key}"))
    assert [found for place in places for found in holding(place, disguises)] == []
    told = [platform.log.read_bytes(), (platform.data_dir / "db" / "state.db").read_bytes()]
    told += [str(api(platform, path)).encode() for path in ("volumes", "events", "audit", "nodes")]
    vmms = qemu_processes(platform.key)
    for pid in (*platform_processes(platform), *vmms):
        with suppress(FileNotFoundError, ProcessLookupError):
            told += [(Path("/proc") / str(pid) / name).read_bytes() for name in ("cmdline", "environ")]
    assert vmms
    assert not [each[:200] for each in told for word in disguises if word in each]


def test_what_is_written_outlives_releases_grows_and_comes_back(platform: Platform) -> None:
    platform.swg("deploy", "-a", APP, "-i", "hello:v1", "--port", "8080", "--check-path", "/healthz")
    write(platform, FIRST)
    assert shown(platform, "show", "data")["encrypted"]
    platform.swg("deploy", "-a", APP, "-i", "hello:v2")
    assert read(platform) == FIRST

    platform.swg("volumes", "resize", "data", "128m")
    room = "import os; s = os.statvfs('/data'); print(s.f_blocks * s.f_frsize >> 20)"
    until(lambda: int(python(platform, room)) > 90, "the guest's file system grew")

    snapshot = shown(platform, "snapshot", "data", "--freeze")["id"]
    write(platform, SECOND)
    assert platform.process is not None
    kill_platform(platform)
    platform.start()
    assert read(platform) == SECOND

    platform.swg("volumes", "restore", "data", snapshot, "--to", "copy")
    assert shown(platform, "show", "copy")["state"] == "available"
    sees_nothing(platform)
    platform.swg("apps", "stop", APP)
    until(lambda: shown(platform, "show", "data")["state"] == "available", "the volume is free")
    platform.swg("volumes", "restore", "data", snapshot, "-y")
    platform.swg("apps", "start", APP)
    until(lambda: shown(platform, "show", "data")["state"] == "attached", "the app has it again")
    until(lambda: '"phase": "healthy"' in platform.swg("vms", "ls", "--json"), "it serves")
    assert read(platform) == FIRST
