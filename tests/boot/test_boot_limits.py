"""The limit on open files: what is set at a start, and that it is set."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from shellwego.boot.limits import ENOUGH_FILES, wanted_file_limit


@pytest.mark.parametrize(
    ("hard", "nr_open", "root", "wanted"),
    [
        (4096, 1 << 20, True, ENOUGH_FILES),
        (4096, 1 << 20, False, 4096),
        (1 << 19, 1 << 20, True, 1 << 19),
        (4096, 10_000, True, 10_000),
        (4096, 0, True, 4096),
        (resource.RLIM_INFINITY, 1 << 20, True, resource.RLIM_INFINITY),
    ],
)
def test_root_raises_the_limit_as_far_as_is_needed_and_others_as_far_as_they_may(
    hard: int, nr_open: int, root: bool, wanted: int
) -> None:
    assert wanted_file_limit(hard, nr_open=nr_open, root=root) == wanted


def test_a_start_lifts_the_soft_limit_to_the_hard_one() -> None:
    """In a process of its own: a limit that was lowered stays so for those who are not root."""
    code = (
        "import resource; from shellwego.boot.limits import raise_file_limit;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400)); told = raise_file_limit();"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), told)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    soft, hard, told = map(int, done.stdout.split())
    assert soft == hard == told
    assert hard in (400, ENOUGH_FILES), "not every root may raise it: some containers forbid it"
