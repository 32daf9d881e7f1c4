"""Which processes are taken for our HAProxy: told by uid, command line and start time, from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shellwego.edge.processes import haproxy_processes, is_haproxy
from shellwego.edge.settings import Layout

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
FORK = "import os, time; os.fork() or print('up', flush=True); time.sleep(60)"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@contextmanager
def pretender(*arguments: str, program: str = SLEEP) -> Iterator[subprocess.Popen[bytes]]:
    """A process with these arguments; its whole session is ended."""
    argv = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                subprocess.run(["kill", "-9", child], check=True)
            process.kill()


def test_a_master_with_our_configuration_is_ours(layout: Layout) -> None:
    with pretender("-sf", "12", "-W", "-f", str(layout.config)) as process:
        found = is_haproxy(layout, process.pid)
        assert found is not None
        assert haproxy_processes(layout) == (found,)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-W", "-f", "/other/haproxy.cfg"),
        ("-W", "{config}"),
        ("-W", "-f", "{config}.old"),
        ("-c", "-f", "{config}"),
        ("-W", "-f {config}"),
    ],
)
def test_anybody_else_is_not(layout: Layout, arguments: tuple[str, ...]) -> None:
    with pretender(*(argument.format(config=layout.config) for argument in arguments)) as process:
        assert is_haproxy(layout, process.pid) is None
        assert haproxy_processes(layout) == ()


def test_a_zombie_is_never_ours(layout: Layout) -> None:
    with pretender("-W", "-f", str(layout.config)) as process:
        assert is_haproxy(layout, process.pid) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}/stat").exists()
        assert is_haproxy(layout, process.pid) is None


def test_the_master_comes_before_the_workers_that_it_forked(layout: Layout) -> None:
    with pretender("-W", "-f", str(layout.config), program=FORK) as process:
        master, worker = haproxy_processes(layout)
        assert (master.pid, worker.parent) == (process.pid, process.pid)


def test_a_process_that_is_gone_is_none(layout: Layout) -> None:
    assert is_haproxy(layout, 2**22 + 1) is None
