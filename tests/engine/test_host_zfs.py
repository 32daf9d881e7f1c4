"""What root does with ZFS: command lines as values, and what it refuses whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host import protocol, zfs
from plasmavmc.host.helper.zfs import HelperZfs, argv_of, base_argv, check_order, look_argv

BASE = "tank/swg/swg-abcdefghijkl"
SIZED = ("-o", "shellwego:size=1024")
ALONE = ("-o", "canmount=noauto")


@pytest.mark.parametrize(
    ("order", "argv"),
    [
        (
            zfs.ZfsCreate("vol_1", 1024, sealed=True),
            ("create", *ALONE, *SIZED, "-o", "shellwego:sealed=yes", f"{BASE}/vol_1"),
        ),
        (
            zfs.ZfsClone("vol_1", "snap_1", "snap_1.view", 1024, sealed=False, whole=False),
            ("clone", *ALONE, *SIZED, "-o", "shellwego:sealed=no", f"{BASE}/vol_1@snap_1", f"{BASE}/snap_1.view"),
        ),
        (
            zfs.ZfsClone("vol_1", "snap_1", "vol_2", 1024, sealed=False, whole=True),
            (
                *("clone", *ALONE, *SIZED, "-o", "shellwego:sealed=no", "-o", "shellwego:whole=yes"),
                *(f"{BASE}/vol_1@snap_1", f"{BASE}/vol_2"),
            ),
        ),
        (zfs.ZfsSnapshot("vol_1", "snap_1", 1024), ("snapshot", *SIZED, f"{BASE}/vol_1@snap_1")),
        (zfs.ZfsResize("vol_1", 1024), ("set", "shellwego:size=1024", f"{BASE}/vol_1")),
        (zfs.ZfsMark("vol_1", "yes"), ("set", "shellwego:whole=yes", f"{BASE}/vol_1")),
        (zfs.ZfsMark("vol_1", "receiving"), ("set", "shellwego:whole=receiving", f"{BASE}/vol_1")),
        (zfs.ZfsMark("vol_1", "no"), ("set", "shellwego:whole=no", f"{BASE}/vol_1")),
        (zfs.ZfsMount("vol_1"), ("mount", f"{BASE}/vol_1")),
        (zfs.ZfsRollback("vol_1", "snap_1"), ("rollback", f"{BASE}/vol_1@snap_1")),
        (zfs.ZfsPromote("vol_2"), ("promote", f"{BASE}/vol_2")),
        (zfs.ZfsDestroy("snap_1.view"), ("destroy", f"{BASE}/snap_1.view")),
        (zfs.ZfsDestroySnapshot("vol_1", "snap_1"), ("destroy", "-d", f"{BASE}/vol_1@snap_1")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, zfs.ZfsOrder) else "",
)
def test_an_order_is_one_command_for_one_child_and_travels_whole(order: zfs.ZfsOrder, argv: tuple[str, ...]) -> None:
    check_order(order)
    assert argv_of(order, BASE) == argv
    sent = protocol.encode(protocol.ZfsDo(order))
    received = protocol.decode_request(sent)
    assert isinstance(received, protocol.ZfsDo)
    assert received.order == order


def test_an_installations_dataset_is_never_mounted_and_holds_no_devices_or_programs() -> None:
    argv = base_argv(BASE, Path("/run/shellwego/zfs/x"))
    assert (argv[0], argv[-1]) == ("create", BASE)
    options = set(argv[2:-1:2])
    assert {"canmount=off", "setuid=off", "devices=off", "exec=off"} <= options
    assert "mountpoint=/run/shellwego/zfs/x" in options


def test_a_look_asks_for_numbers_and_names_what_is_read() -> None:
    assert look_argv(BASE)[:6] == ("get", "-H", "-p", "-r", "-o", "name,property,value")


BAD_NAMES = (
    "",
    "..",
    "vol_1/x",
    "../vol_1",
    "vol_1@snap_1",
    "-r",
    "vol_1.other",
    "Vol_1",
    "vol 1",
    "vol_1\n",
    "v" * 65,
)


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_what_is_not_the_name_of_a_volume_is_refused(bad: str) -> None:
    for order in (
        zfs.ZfsCreate(bad, 1024, sealed=False),
        zfs.ZfsClone(bad, "snap_1", "vol_2", 1024, sealed=False, whole=True),
        zfs.ZfsClone("vol_1", "snap_1", bad, 1024, sealed=False, whole=True),
        zfs.ZfsMark(bad, "yes"),
        zfs.ZfsDestroy(bad),
        zfs.ZfsPromote(bad),
    ):
        with pytest.raises(HostError) as caught:
            check_order(order)
        assert caught.value.code == "helper-refused"


@pytest.mark.parametrize("bad", [*BAD_NAMES, "snap_1.view"])
def test_what_is_not_the_name_of_a_snapshot_is_refused(bad: str) -> None:
    for order in (
        zfs.ZfsSnapshot("vol_1", bad, 1024),
        zfs.ZfsClone("vol_1", bad, "vol_2", 1024, sealed=False, whole=True),
        zfs.ZfsRollback("vol_1", bad),
        zfs.ZfsDestroySnapshot("vol_1", bad),
    ):
        with pytest.raises(HostError) as caught:
            check_order(order)
        assert caught.value.code == "helper-refused"


@pytest.mark.parametrize("size", [-1, 2**63])
def test_a_size_out_of_bounds_is_refused(size: int) -> None:
    with pytest.raises(HostError, match="out of bounds"):
        check_order(zfs.ZfsResize("vol_1", size))


def test_a_helper_that_was_given_no_dataset_does_nothing(tmp_path: Path) -> None:
    helper = HelperZfs("", "swg-test", tmp_path, 0, 0)
    for attempt in (helper.open, helper.look, lambda: helper.do(zfs.ZfsDestroy("vol_1"))):
        with pytest.raises(HostError, match="no dataset was named"):
            attempt()


@pytest.mark.parametrize(
    "bad", ["-r", "tank/", "/tank", "tank//x", "tank@snap", "tank/-x", "tank x", "t" * 129, "tank/.."]
)
def test_what_cannot_be_a_dataset_is_told_to_the_operator(bad: str, tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        HelperZfs(bad, "swg-test", tmp_path, 0, 0)
    assert caught.value.code == "bad-zfs-dataset"
