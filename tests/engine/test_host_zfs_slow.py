"""An order for ZFS ends in its time, whatever the disks do: by a stand-in for the program, as slow as it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plasmavmc.errors import UnavailableError
from plasmavmc.host import zfs
from plasmavmc.host.client import REPLY_DEADLINE_S
from plasmavmc.host.helper import zfs_commands
from plasmavmc.host.helper.zfs import HelperZfs
from plasmavmc.host.helper.zfs_commands import KILL_WAIT_S, ORDER_S

ORDER = 1.0
Slow = Callable[[str], HelperZfs]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """What the stand-in was asked for, a command a line."""
    return tmp_path / "asked"


@pytest.fixture
def slow(tmp_path: Path, asked: Path, monkeypatch: pytest.MonkeyPatch) -> Slow:
    """A helper whose `zfs` does what a piece of shell says."""

    def made(does: str) -> HelperZfs:
        program = tmp_path / "zfs"
        program.write_text(f'#!/bin/sh\necho "$1" >> {asked}\n{does}\n')
        program.chmod(0o755)
        monkeypatch.setattr(zfs_commands, "find_program", lambda _name: str(program))
        monkeypatch.setattr(zfs_commands, "check_program", lambda _path, _what: None)
        return HelperZfs("tank", "swg-test", tmp_path / "mounts", 0, 0, order_s=ORDER)

    return made


def took(attempt: Callable[[], object]) -> float:
    """How long it was until it was told that it takes too long."""
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match="zfs") as caught:
        attempt()
    assert caught.value.code == "storage-slow"
    assert "Try again" in caught.value.resolution
    return time.monotonic() - begun


def test_who_gives_orders_waits_longer_than_any_takes() -> None:
    assert ORDER_S + 2 * KILL_WAIT_S < REPLY_DEADLINE_S - 5


def test_all_commands_of_an_order_share_its_time(slow: Slow, asked: Path) -> None:
    """Each of them would end in that time."""
    helper = slow(f"sleep {0.7 * ORDER}")
    assert took(lambda: helper.do(zfs.ZfsCreate("vol_1", 1024, sealed=False))) < ORDER + KILL_WAIT_S
    assert asked.read_text().split() == ["create", "mount"]
    assert took(helper.open) < ORDER + KILL_WAIT_S


def test_what_finds_a_dataset_busy_is_tried_in_that_time_only(slow: Slow) -> None:
    helper = slow("echo dataset is busy >&2; sleep 0.05; exit 1")
    assert took(lambda: helper.do(zfs.ZfsDestroy("vol_1"))) < ORDER + KILL_WAIT_S


def test_what_was_to_be_rolled_back_is_mounted_again_though_that_took_too_long(slow: Slow, asked: Path) -> None:
    helper = slow('[ "$1" = mount ] || exec sleep 600')
    assert took(lambda: helper.do(zfs.ZfsRollback("vol_1", "snap_1"))) < ORDER + KILL_WAIT_S
    assert asked.read_text().split() == ["rollback", "mount"]


def test_a_look_ends_too(slow: Slow) -> None:
    assert took(slow("exec sleep 600").look) < ORDER + KILL_WAIT_S
