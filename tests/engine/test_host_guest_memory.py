"""Root finds a guest's memory among a VMM's descriptors, and opens nothing else, whatever a VMM puts there."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.host.helper.guest_memory import open_guest_memory
from plasmavmc.host.names import MEMORY_NAMES
from plasmavmc.host.operations import ProcessId
from plasmavmc.host.processes import read_process

QEMUS = "memory-backend-memfd"


@contextmanager
def holding(*descriptors: int) -> Iterator[ProcessId]:
    """A process that holds these descriptors and does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=descriptors)
    try:
        found = read_process(process.pid)
        assert found is not None
        yield found.id
    finally:
        process.kill()
        process.communicate()


@contextmanager
def memfd(name: str, content: bytes = b"") -> Iterator[int]:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(descriptor, content)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def refused(process: ProcessId) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(HostError) as caught:
        open_guest_memory(process)
    assert caught.value.code == "no-memory"
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("name", sorted(MEMORY_NAMES))
def test_it_is_found_by_name_and_can_only_be_read(name: str) -> None:
    with memfd("another"), memfd(name, b"guest") as memory, holding(memory) as process:
        found = open_guest_memory(process)
        try:
            assert os.pread(found, 5, 0) == b"guest"
            with pytest.raises(OSError):  # noqa: PT011 - whatever the number
                os.write(found, b"x")
        finally:
            os.close(found)


def test_a_memory_with_several_descriptors_is_one() -> None:
    with memfd(QEMUS) as memory, holding(memory, os.dup(memory)) as process:
        os.close(open_guest_memory(process))


def test_none_and_two_are_refused() -> None:
    with memfd("another") as other, holding(other) as process:
        refused(process)
    with memfd(QEMUS) as one, memfd(QEMUS) as two, holding(one, two) as process:
        refused(process)


def test_a_process_that_is_gone_has_none() -> None:
    with holding() as process:
        pass
    refused(process)


def test_a_file_of_that_name_is_not_taken_for_memory_and_a_pipe_is_not_opened(tmp_path: Path) -> None:
    deceiver = tmp_path / f"memfd:{QEMUS} (deleted)"
    deceiver.write_bytes(b"no memory")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    file = os.open(deceiver, os.O_RDONLY)
    try:
        with holding(file, end) as process:
            refused(process)
            assert not select.select([end], [], [], 0)[0], "nobody has opened it for writing"
    finally:
        os.close(file)
        os.close(end)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), max_size=4))
def test_no_name_of_a_memory_deceives(names: list[str]) -> None:
    made = [os.memfd_create(name, os.MFD_CLOEXEC) for name in names]
    try:
        with socket.socket() as noise, holding(*made, noise.fileno()) as process:
            if [name for name in names if name in MEMORY_NAMES]:
                return
            refused(process)
    finally:
        for descriptor in made:
            os.close(descriptor)
