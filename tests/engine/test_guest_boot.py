"""What guests boot from: the archive's bytes, the kernel out of its image, and the cache that is filled once."""

from __future__ import annotations

import gzip
import lzma
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from plasmavmc.errors import HostError
from plasmavmc.guest import bzimage, cpio
from plasmavmc.guest import kernel as kernel_module
from plasmavmc.guest.apt import parse_dependencies
from plasmavmc.guest.boot import assets_present, build_guest, disk_template, initramfs, load_assets
from plasmavmc.guest.cache import make_current, publish, workshop
from plasmavmc.guest.kernel import (
    MODULES,
    VSOCK_MODULES,
    Kernel,
    current_kernel,
    fetch_kernel,
    kernel_packages,
    read_module,
)
from plasmavmc.guest.tsc import tsc_khz
from plasmavmc.types import GIB, MIB

ELF = b"\x7fELF" + bytes(range(256)) * 50
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32) + len(data).to_bytes(4, "little"),
    "zstd": lambda data: zstandard.compress(data) + len(data).to_bytes(4, "little"),
    "lz4": lambda data: (
        subprocess.run(["lz4", "-l", "-c"], input=data, capture_output=True, check=True).stdout
        + len(data).to_bytes(4, "little")
    ),
}


def bzimage_of(packed: bytes) -> bytes:
    """The least of a bzImage: three sectors of set-up, then code, then the payload."""
    image = bytearray(4 * 512)
    image[0x1F1] = 3
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 100, len(packed))
    return bytes(image) + bytes(100) + packed + bytes(300)


@pytest.mark.parametrize("packer", PACKERS)
async def test_the_kernel_is_found_in_its_image_however_it_is_packed(packer: str) -> None:
    assert await bzimage.extract_vmlinux(bzimage_of(PACKERS[packer](ELF))) == ELF


@pytest.mark.parametrize(
    "image",
    [
        b"",
        bytes(4096),
        bzimage_of(b"")[:-300],
        bzimage_of(gzip.compress(ELF))[:1500],
        bzimage_of(b"unknown packing"),
        bzimage_of(gzip.compress(ELF)[:-30]),
        bzimage_of(gzip.compress(b"no ELF at all")),
    ],
)
async def test_what_is_no_kernel_image_is_refused(image: bytes) -> None:
    with pytest.raises(HostError) as refused:
        await bzimage.extract_vmlinux(image)
    assert refused.value.code == "bad-kernel"


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    entries = (
        cpio.directory("dev"),
        cpio.character_device("dev/console", 5, 1),
        cpio.regular("init", b"#!/bin/sh\n", 0o755),
        cpio.regular("empty", b""),
    )
    data = cpio.archive(entries)
    assert data[:6] == b"070701"
    assert len(data) % 4 == 0
    assert cpio.archive(entries) == data
    names: list[str] = []
    position = 0
    while not names or names[-1] != "TRAILER!!!":
        fields = [int(data[position + 6 + 8 * index : position + 14 + 8 * index], 16) for index in range(13)]
        name_end = position + 110 + fields[11]
        names.append(data[position + 110 : name_end - 1].decode())
        if names[-1] == "dev/console":
            assert stat.S_ISCHR(fields[1])
            assert fields[9:11] == [5, 1]
        content = name_end + -name_end % 4
        if names[-1] == "init":
            assert data[content : content + fields[6]] == b"#!/bin/sh\n"
        position = content + fields[6] + -fields[6] % 4
    assert names == ["dev", "dev/console", "init", "empty", "TRAILER!!!"]


def test_modules_keep_their_order_in_the_initramfs(tmp_path: Path) -> None:
    for name in ("01-second.ko", "00-first.ko"):
        (tmp_path / name).write_bytes(name.encode())
    data = initramfs(b"init", sorted(tmp_path.iterdir()))
    assert data.index(b"mods/00-first.ko") < data.index(b"mods/01-second.ko") < data.index(b"init\0")


def test_kernel_packages_are_found_among_the_dependencies() -> None:
    printed = """linux-image-cloud-amd64
  Depends: linux-image-6.1.0-56-cloud-amd64
  PreDepends: dpkg
 |Depends: kmod
  Depends: linux-modules-6.8.0-31-generic
  Depends: linux-base
  Depends: <virtual-thing>
"""
    assert kernel_packages(parse_dependencies(printed)) == (
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-modules-6.8.0-31-generic",
    )


def test_modules_are_read_packed_or_not_and_known_when_built_in(tmp_path: Path) -> None:
    kernel = tmp_path / "lib" / "modules" / "6.1" / "kernel"
    kernel.mkdir(parents=True)
    (kernel / "a.ko").write_bytes(b"plain")
    (kernel / "b.ko.xz").write_bytes(lzma.compress(b"by xz"))
    (kernel / "c.ko.zst").write_bytes(zstandard.compress(b"by zstd"))
    (kernel / "d.ko.gz").write_bytes(gzip.compress(b"by gzip"))
    (kernel.parent / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    assert [read_module(tmp_path, name) for name in "abcd"] == [b"plain", b"by xz", b"by zstd", b"by gzip"]
    assert read_module(tmp_path, "ext4") is None
    with pytest.raises(HostError, match="no module xt4"):
        read_module(tmp_path, "xt4")


def planted_kernel(cache: Path, *, lacking: str = "") -> Kernel:
    with workshop(cache / "kernel") as made:
        kernel = made / "kernel"
        kernel.mkdir()
        (kernel / "vmlinux").write_bytes(ELF)
        (kernel / "sha256").write_text("ab" * 32 + "\n")
        for name, module in {"modules-2": "00-module", "modules-vsock": "01-vsock"}.items():
            if name != lacking:
                (kernel / name).mkdir()
                (kernel / name / f"{module}.ko").write_bytes(module[3:].encode())
        publish(kernel, cache / "kernel" / "linux-image-1")
    make_current(cache / "kernel" / "linux-image-1")
    return Kernel(cache / "kernel" / "linux-image-1")


async def test_a_kernel_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    planted_kernel(tmp_path)
    kernel, fetched = await fetch_kernel(tmp_path)
    assert (kernel.release, fetched) == ("linux-image-1", False)


def planted_package(into: Path) -> list[Path]:
    """A kernel's package of the release that `planted_kernel` has."""
    tree = into / "package"
    modules = tree / "lib" / "modules" / "6.1"
    for directory in (tree / "DEBIAN", tree / "boot", modules):
        directory.mkdir(parents=True)
    fields = {
        "Package": "linux-image-1",
        "Version": "1",
        "Architecture": "amd64",
        "Maintainer": "n",
        "Description": "d",
    }
    (tree / "DEBIAN" / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    (tree / "boot" / "vmlinuz-6.1").write_bytes(bzimage_of(gzip.compress(ELF)))
    for name in (*MODULES, *VSOCK_MODULES):
        (modules / f"{name}.ko").write_bytes(name.encode())
    package = into / "linux-image-1.deb"
    subprocess.run(["dpkg-deb", "--build", tree, package], check=True, capture_output=True)
    return [package]


@pytest.mark.parametrize("lacking", ["modules-2", "modules-vsock"])
async def test_a_kernel_of_an_older_version_is_given_the_modules_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    old = planted_kernel(tmp_path / "cache", lacking=lacking)
    assert current_kernel(tmp_path / "cache") is None
    packages = planted_package(tmp_path)

    async def downloaded(_archive: object, _into: Path) -> list[Path]:
        return packages

    monkeypatch.setattr(kernel_module, "_download", downloaded)
    kernel, fetched = await fetch_kernel(tmp_path / "cache")
    assert (kernel.directory, fetched) == (old.directory, True)
    given = [path.read_bytes().decode() for path in kernel.modules(vsock=True)]
    wanted = {"modules-2": [*MODULES, "vsock"], "modules-vsock": ["module", *VSOCK_MODULES]}
    assert given == wanted[lacking]
    assert not (await fetch_kernel(tmp_path / "cache"))[1]


async def test_only_a_guest_with_a_vsock_is_given_its_modules(tmp_path: Path) -> None:
    planted_kernel(tmp_path)
    assets, _ = await build_guest(tmp_path)
    assert b"01-vsock.ko" in assets.initrd_for("vsock").read_bytes()
    assert b"vsock.ko" not in assets.initrd_for("serial").read_bytes()


async def test_an_empty_cache_is_told_with_the_remedy(tmp_path: Path) -> None:
    assert not assets_present(tmp_path)
    with pytest.raises(HostError) as refused:
        load_assets(tmp_path)
    assert refused.value.code == "no-guest-kernel"
    assert "scripts/setup" in refused.value.resolution
    with pytest.raises(HostError, match="no guest kernel"):
        await build_guest(tmp_path)


async def test_the_guest_is_built_once_and_again_for_another_kernel(tmp_path: Path) -> None:
    planted_kernel(tmp_path)
    first, built = await build_guest(tmp_path)
    assert built
    assert assets_present(tmp_path)
    assert await build_guest(tmp_path) == (first, False)
    assert load_assets(tmp_path) == first
    assert (first.kernel_hash, first.kernel_release) == ("ab" * 32, "linux-image-1")
    assert stat.S_IMODE(first.initrd.stat().st_mode) == 0o644
    assert stat.S_IMODE(first.initrd.parent.stat().st_mode) == 0o755
    with workshop(tmp_path / "kernel") as made:
        for name in ("modules-2", "modules-vsock"):
            (made / "other" / name).mkdir(parents=True)
        (made / "other" / "vmlinux").write_bytes(ELF)
        (made / "other" / "sha256").write_text("cd" * 32)
        publish(made / "other", tmp_path / "kernel" / "linux-image-2")
    make_current(tmp_path / "kernel" / "linux-image-2")
    assert not assets_present(tmp_path)
    second, built = await build_guest(tmp_path)
    assert built
    assert second.initrd_hash != first.initrd_hash
    assert first.initrd.exists()


def check_file_system(image: Path) -> None:
    checked = subprocess.run(["/usr/sbin/e2fsck", "-fn", image], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout


async def test_a_disk_template_is_small_clean_and_made_once(tmp_path: Path) -> None:
    template = await disk_template(tmp_path, 4 * GIB)
    status = template.stat()
    assert status.st_size == 4 * GIB
    assert status.st_blocks * 512 < MIB
    assert stat.S_IMODE(status.st_mode) == 0o644
    check_file_system(template)
    assert await disk_template(tmp_path, 4 * GIB) == template
    assert template.stat().st_mtime_ns == status.st_mtime_ns
    assert [path.name for path in (tmp_path / "disks").iterdir()] == [template.name]


async def test_disk_sizes_are_rounded_up_to_what_can_be_formatted(tmp_path: Path) -> None:
    assert (await disk_template(tmp_path, 1)).stat().st_size == 16 * MIB
    assert (await disk_template(tmp_path, 20 * MIB + 1)).stat().st_size == 21 * MIB


async def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError) as refused:
        await disk_template(tmp_path / "file", MIB)
    assert refused.value.code == "cache-not-writable"


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with workshop(tmp_path / "kernel") as made:
            (made / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((tmp_path / "kernel").iterdir()) == []


def test_the_clock_is_measured_plausibly() -> None:
    assert 500_000 < tsc_khz() < 10_000_000
    assert tsc_khz() == tsc_khz()
