"""What a VM wrote comes back with the same sums: its volume's backup as a new volume; and, with everything else, on a host
where nothing is left of the platform but a backup of it. Volumes are encrypted, as they are by default."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.images import hello
from examples.demo.leftovers import of_installation
from examples.demo.platform import Platform
from shellwego.boot.backupcommands import PASSPHRASE
from tests.real.platform_harness import REPOSITORY, fetch, healthy, scratch_platform, until

pytestmark = [pytest.mark.real, pytest.mark.nightly]

APP = "shop"
WORDS = "correct horse battery staple"
_WRITE = """
import hashlib, os
for number in range(12):
    with open(f'/data/{number}', 'wb') as file:
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
"""
_SUMS = """
import hashlib, os
for name in sorted(os.listdir('/data')):
    if name != 'lost+found':
        print(name, hashlib.sha256(open(f'/data/{name}', 'rb').read()).hexdigest())
"""


@pytest.fixture
def platform() -> Iterator[Platform]:
    with scratch_platform(repository=True) as made:
        yield made


def sums(platform: Platform) -> str:
    """Of all that is in the app's volume, as its VM reads it."""
    return platform.swg("exec", "-a", APP, "--", "python3", "-c", _SUMS)


def back_up(platform: Platform, what: str, place: Path, *how: str, code: int = 0) -> None:
    """The command for the whole platform, its passphrase given by the environment."""
    words, platform.environment = platform.environment, {**platform.environment, PASSPHRASE: WORDS}
    try:
        platform.swg("backup", what, str(place), "--data-dir", str(platform.data_dir), *how, code=code)
    finally:
        platform.environment = words


def deploy(platform: Platform) -> None:
    platform.swg("deploy", "-a", APP, "-i", "hello:v1", "--port", "8080", "--check-path", "/healthz")


def test_what_a_vm_wrote_comes_back_from_its_backup_and_with_the_whole_platform(
    platform: Platform, tmp_path: Path
) -> None:
    image = str(hello("v1"))
    platform.swg("images", "load", "hello:v1", image)
    platform.swg("apps", "create", APP)
    platform.swg("volumes", "create", "data", "--size", "64m")
    platform.swg("volumes", "attach", "data", "-a", APP, "--path", "/data")
    deploy(platform)
    platform.swg("exec", "-a", APP, "--", "python3", "-c", _WRITE)
    written = sums(platform)
    assert len(written.splitlines()) == 12
    assert platform.json("volumes", "show", "data")["encrypted"]

    # What is destroyed in a volume is in the one that is made of its backup.
    backup = platform.json("volumes", "backup", "data")["id"]
    platform.swg("exec", "-a", APP, "--", "sh", "-c", "rm -r /data/*; echo scribble > /data/1; sync")
    platform.swg("volumes", "restore", "data", "--backup", backup, "--to", "again")
    platform.swg("volumes", "detach", "data", "--stage")
    platform.swg("volumes", "attach", "again", "-a", APP, "--path", "/data")
    assert sums(platform) == written

    # Nothing is left but a backup of the platform.
    place = tmp_path / "backup"
    back_up(platform, "create", place, "--volumes", "again")
    platform.stop()
    assert not of_installation(platform.data_dir)
    for lost in (platform.data_dir, *(platform.data_dir.parent / REPOSITORY).iterdir()):
        shutil.rmtree(lost)
    back_up(platform, "restore", place, code=2)
    back_up(platform, "restore", place, "--volumes", "all")
    platform.start()
    platform.swg("images", "load", "hello:v1", image)
    until(lambda: healthy(platform, APP, 1), "the app serves as before")
    until(lambda: fetch(platform, APP)[0] == 200, "its edge knows it")
    assert sums(platform) == written
    assert platform.json("volumes", "show", "again")["state"] == "attached"
