"""A fence that is set has a warden, or whoever sets it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host.helper import spawn, warden
from plasmavmc.host.helper.fences import Fences

KEY, LATER_S = "a" * 12, 60.0


@pytest.fixture
def fences(tmp_path: Path) -> Iterator[Fences]:
    (tmp_path / "uids").mkdir()
    made = Fences(tmp_path, "swg_fences")
    yield made
    made.remove()


def test_a_fence_without_a_warden_is_an_error_and_the_next_one_gets_one(
    fences: Fences, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(HostError, match=r"/nowhere/python") as caught:
            fences.set(KEY, time.monotonic() + LATER_S)
    assert caught.value.code == "no-warden"
    fences.set(KEY, time.monotonic() + LATER_S)


def test_a_warden_that_ends_before_it_is_one_is_an_error(fences: Fences, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "run", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(HostError, match="ended at once") as caught:
        fences.set(KEY, time.monotonic() + LATER_S)
    assert caught.value.code == "no-warden"


_WITH_A_THREAD = """
import threading
threading.Thread(target=threading.Event().wait).start()
print(flush=True)
"""


def test_a_number_that_is_a_threads_by_now_keeps_a_warden_from_no_other_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen([sys.executable, "-c", _WITH_A_THREAD], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            threads = {path.name for path in Path(f"/proc/{child.pid}/task").iterdir()} - {str(child.pid)}
            assert threads
            with monkeypatch.context() as listed:
                listed.setattr(os, "listdir", lambda _: [*threads, str(child.pid)])
                warden.kill({str(os.getuid())})
            assert child.wait(5) == -signal.SIGKILL
        finally:
            child.kill()


def test_a_fence_beside_a_warden_starts_no_other(fences: Fences, monkeypatch: pytest.MonkeyPatch) -> None:
    fences.set(KEY, time.monotonic() + LATER_S)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    fences.set(KEY, time.monotonic() + LATER_S)
