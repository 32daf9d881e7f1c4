"""Secrets on a running platform: the guest sees the value, and nothing of the host shows it.

Canaries go in by the command line's stdin; then the data directory is read whole, as bytes, the guest's disk in it too, and
the run directory, the log, the API, and the command lines and environments of all processes of the platform.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from examples.demo.images import hello
from examples.demo.platform import Platform, qemu_processes
from tests.real.platform_harness import api, haproxy_master, platform_processes, scratch_platform

pytestmark = pytest.mark.real

APP = "shop"
FIRST, SECOND, PASSPHRASE = "canary-first-8d1f", "canary-second-8d1f", "canary-passphrase-8d1f"
SEEN = "import hashlib, os; print(hashlib.sha256(os.environ['TOKEN'].encode()).hexdigest())"
"""Run in the guest: what it tells of the value is no canary."""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    passphrase = tmp_path_factory.mktemp("passphrase") / "passphrase"
    passphrase.write_text(PASSPHRASE)
    passphrase.chmod(0o600)
    with scratch_platform("--master-passphrase-file", str(passphrase)) as made:
        made.swg("images", "load", "hello:v1", str(hello("v1")))
        made.swg("apps", "create", APP)
        made.swg("secrets", "set", "-a", APP, "TOKEN=-", stdin=FIRST)
        made.swg("deploy", "-a", APP, "-i", "hello:v1", "--port", "8080", "--check-path", "/healthz")
        yield made


def seen_by(platform: Platform, *how: str) -> str:
    return platform.swg(*how, "-a", APP, "--", "python3", "-c", SEEN).split()[-1]


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def holding(directory: Path) -> list[str]:
    """Files below a directory that hold a canary; a piece at a time, each with the end of the one before."""
    canaries = [value.encode() for value in (FIRST, SECOND, PASSPHRASE)]
    bad = []
    for path in directory.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        tail = b""
        with suppress(FileNotFoundError), path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                if any(canary in tail + piece for canary in canaries):
                    bad.append(str(path))
                    break
                tail = piece[-64:]
    return bad


def told_by_processes(platform: Platform) -> dict[int, bytes]:
    """Command line and environment of every process of the platform, VMMs and the edge among them."""
    ours = [*platform_processes(platform), *qemu_processes(platform.key), *filter(None, [haproxy_master(platform)])]
    told = {}
    for pid in ours:
        with suppress(FileNotFoundError, ProcessLookupError):
            place = Path("/proc") / str(pid)
            told[pid] = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
    assert len(told) >= 4, "root's helper, the platform, a VMM and the edge"
    return told


def test_the_guest_sees_the_value_and_nothing_of_the_host_shows_it(platform: Platform) -> None:
    assert seen_by(platform, "exec") == digest(FIRST)
    assert seen_by(platform, "run") == digest(FIRST)
    platform.swg("secrets", "rotate", "TOKEN=-", stdin=SECOND)
    assert seen_by(platform, "exec") == digest(SECOND)
    platform.swg("secrets", "set", "OTHER=-", stdin="x")
    platform.swg("secrets", "retire", "TOKEN", "1", "--yes", code=None)
    platform.swg("secrets", "set", f"TOKEN={SECOND}", code=2)

    assert holding(platform.data_dir) == []
    assert holding(Path(f"/run/shellwego/{platform.key}")) == []
    canaries = (FIRST, SECOND, PASSPHRASE)
    log = platform.log.read_text()
    answers = "".join(
        str(api(platform, path))
        for path in (f"apps/{APP}", f"apps/{APP}/env", f"apps/{APP}/releases", "events", "audit")
    )
    answers += str(api(platform, f"apps/{APP}/instances")) + str(api(platform, f"apps/{APP}/logs"))
    for canary in canaries:
        assert canary not in log
        assert canary not in answers
    for pid, told in told_by_processes(platform).items():
        assert not any(canary.encode() in told for canary in canaries), pid


def test_no_crash_of_the_platform_writes_its_memory(platform: Platform) -> None:
    for pid in platform_processes(platform):
        limits = (Path("/proc") / str(pid) / "limits").read_text()
        (core,) = [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core == ["0", "0"]


def test_the_key_file_is_sealed_and_the_platforms_own(platform: Platform) -> None:
    path = platform.data_dir / "keys" / "master-keys.json"
    assert '"salt": ""' not in path.read_text()
    status = path.stat()
    assert (status.st_mode & 0o777, status.st_uid != os.geteuid()) == (0o600, True)
