"""Jails that the root helper makes: what gets in, how, and that nothing is left. No VMM runs here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plasmavmc.errors import HostError
from plasmavmc.host.operations import Keep, Limits
from plasmavmc.types import MIB, vm_key
from tests.contract.host_rig import NOBODY, RealHelper

pytestmark = pytest.mark.real
KEY, OTHER = vm_key("vm_one"), vm_key("vm_two")


def a_file(path: Path, content: bytes, mode: int, uid: int = NOBODY) -> Path:
    path.write_bytes(content)
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


async def prepared(helper: RealHelper, key: str = KEY, **files: tuple[Path, int]) -> int:
    """A jail with files, by path and flags of opening."""
    fds = {name: os.open(path, flags | os.O_CLOEXEC) for name, (path, flags) in files.items()}
    try:
        return await helper.host.jail_prepare(key, fds)
    finally:
        for fd in fds.values():
            os.close(fd)


def root_of(helper: RealHelper, key: str = KEY) -> Path:
    base = helper.configuration.jail_root / helper.names.key / "firecracker"
    return base / helper.names.process(key) / "root"


async def refused(code: str, attempt: object) -> None:
    with pytest.raises(HostError) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.code == code


async def test_files_get_in_each_as_it_may_be_used(helper: RealHelper, tmp_path: Path) -> None:
    uid = await helper.host.uid_take(KEY)
    kernel = a_file(tmp_path / "a", b"kernel", 0o644, uid=0)
    private = a_file(tmp_path / "b", b"image", 0o600)
    disk = a_file(tmp_path / "c", b"disk", 0o600)
    sockets = await prepared(
        helper, kernel=(kernel, os.O_RDONLY), disk0=(private, os.O_RDONLY), disk1=(disk, os.O_RDWR)
    )
    root = root_of(helper)
    assert root.joinpath("kernel").samefile(kernel)
    assert root.joinpath("disk1").samefile(disk)
    assert (disk.stat().st_uid, disk.stat().st_gid, disk.stat().st_mode & 0o777) == (NOBODY, uid, 0o660)
    copy = root.joinpath("disk0").stat()
    assert (root.joinpath("disk0").read_bytes(), copy.st_uid, copy.st_gid, copy.st_mode & 0o777) == (
        b"image",
        0,
        uid,
        0o440,
    )
    assert (private.stat().st_gid, private.stat().st_mode & 0o777) == (NOBODY, 0o600)
    status = os.fstat(sockets)
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (uid, NOBODY, 0o2770)
    os.close(sockets)


async def test_nobody_but_root_gets_at_a_jail_by_its_path(helper: RealHelper) -> None:
    await helper.host.uid_take(KEY)
    os.close(await prepared(helper))
    for part in (root_of(helper), *root_of(helper).parents[:3]):
        assert (part.stat().st_uid, part.stat().st_mode & 0o077) == (0, 0)


async def test_a_file_to_write_must_be_the_callers_own(helper: RealHelper, tmp_path: Path) -> None:
    await helper.host.uid_take(KEY)
    roots = a_file(tmp_path / "a", b"", 0o666, uid=0)
    await refused("helper-refused", prepared(helper, disk0=(roots, os.O_RDWR)))
    assert (roots.stat().st_gid, roots.stat().st_mode & 0o777) == (0, 0o666)
    assert not root_of(helper).exists()


@pytest.mark.parametrize(("path", "flags"), [("/dev/null", os.O_RDWR), ("/", os.O_RDONLY), ("/etc/passwd", os.O_PATH)])
async def test_what_is_no_file_or_not_open_is_refused(helper: RealHelper, path: str, flags: int) -> None:
    await helper.host.uid_take(KEY)
    await refused("helper-refused", prepared(helper, kernel=(Path(path), flags)))


async def test_a_jail_needs_a_uid_and_is_made_once(helper: RealHelper) -> None:
    await refused("helper-refused", prepared(helper))
    await helper.host.uid_take(KEY)
    os.close(await prepared(helper))
    await refused("jail-exists", prepared(helper))


async def test_keys_and_names_are_checked(helper: RealHelper, tmp_path: Path) -> None:
    file = a_file(tmp_path / "a", b"", 0o644)
    await helper.host.uid_take(KEY)
    await refused("helper-refused", prepared(helper, **{"../kernel": (file, os.O_RDONLY)}))
    for ask in (helper.host.jail_open, helper.host.jail_remove):
        await refused("helper-refused", ask("../../etc"))
    await refused("helper-refused", helper.host.jail_spawn("../../etc", Limits(256 * MIB, 1000)))
    await refused("no-jail", helper.host.jail_open(OTHER))


async def test_a_uid_is_not_given_back_while_its_jail_is_there(helper: RealHelper) -> None:
    await helper.host.uid_take(KEY)
    os.close(await prepared(helper))
    await refused("helper-refused", helper.host.uid_free(KEY))
    await helper.host.jail_remove(KEY)
    await helper.host.jail_remove(KEY)
    await helper.host.uid_free(KEY)
    assert not root_of(helper).exists()


async def test_a_program_that_is_not_there_is_told_and_the_jail_stays(helper: RealHelper) -> None:
    await helper.host.uid_take(KEY)
    os.close(await prepared(helper))
    await refused("missing-program", helper.host.jail_spawn(KEY, Limits(256 * MIB, 1000)))
    os.close(await helper.host.jail_open(KEY))


async def test_a_sweep_removes_the_jails_of_vms_that_are_not_kept(helper: RealHelper) -> None:
    await helper.host.uid_take(KEY)
    os.close(await prepared(helper))
    await helper.host.sweep(Keep())
    assert not root_of(helper).exists()
