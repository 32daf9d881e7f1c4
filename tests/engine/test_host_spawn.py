"""A process that cannot become its program says so, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_START = """
import os, sys
from plasmavmc.errors import HostError
from plasmavmc.host.helper.spawn import Identity, Program, start

disk, nothing = sys.argv[1:]
fd = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
identity = Identity(os.getuid(), os.getgid(), tuple(os.getgroups()))
try:
    start(Program((nothing,), identity, [fd] * 100, (), {}))
except HostError as error:
    print(error.code, error)
"""
"""In a process with one thread, as the helper is: gRPC goes on in the children of a process that has used it, and ends
them where its descriptors are another's."""


def test_what_is_told_of_a_failed_start_is_written_to_no_descriptor_of_the_vm(tmp_path: Path) -> None:
    """There are so many that their numbers are those which the helper's own descriptors have."""
    disk = tmp_path / "disk"
    argv = [sys.executable, "-c", _START, str(disk), str(tmp_path / "nothing")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("vmm-spawn the VMM was not started: FileNotFoundError: ")
    assert disk.read_bytes() == b""
