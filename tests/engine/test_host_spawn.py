"""A process that cannot become its program says so, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host.helper.spawn import Identity, Program, start


def test_what_is_told_of_a_failed_start_is_written_to_no_descriptor_of_the_vm(tmp_path: Path) -> None:
    """There are so many that their numbers are those which the helper's own descriptors have."""
    disk = tmp_path / "disk"
    fd = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    identity = Identity(os.getuid(), os.getgid(), tuple(os.getgroups()))
    try:
        with pytest.raises(HostError, match=r"was not started: .*Error: ") as caught:
            start(Program((str(tmp_path / "nothing"),), identity, [fd] * 100, (), {}))
    finally:
        os.close(fd)
    assert caught.value.code == "vmm-spawn"
    assert disk.read_bytes() == b""
