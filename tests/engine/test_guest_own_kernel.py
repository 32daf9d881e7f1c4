"""A kernel of our own: what is built how, as values, and the way from a package to what guests boot from, with a source in
miniature that real tools unpack, configure and compile."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from plasmavmc.cli.findings import State, check_host
from plasmavmc.errors import CapacityError, ConflictError, HostError, PlasmaError
from plasmavmc.guest.apt import Package, parse_package
from plasmavmc.guest.boot import build_guest, find_assets, load_assets
from plasmavmc.guest.cache import building_site, make_current
from plasmavmc.guest.kernel import Kernel, distribution_kernel, lacks_fixes
from plasmavmc.guest.ownkernel.build import OwnKernels, Stage
from plasmavmc.guest.ownkernel.recipe import (
    Recipe,
    Workplace,
    configuration,
    environment,
    lost_options,
    missing_packages,
)
from plasmavmc.guest.ownkernel.source import newest_source
from plasmavmc.host.architecture import X86_64

PROGRAM = "void _start(void) { for (;;) ; }\n"
CONFIGURE = "\tcp $(KCONFIG_ALLCONFIG) $(O)/.config\n"
COMPILE = "\t@echo '  CC  init/main.o'\n\tgcc -static -nostdlib -o $(O)/vmlinux main.c\n"
HANG = "\ttouch $(O)/begun\n\tsleep 600\n"
PATIENCE_S = 60.0


def package_of(directory: Path, *, configure: str = CONFIGURE, compile_: str = COMPILE) -> Path:
    """The distribution's package, with a source that is configured and compiled like this."""
    files = {"Makefile": f"allnoconfig:\n{configure}\nvmlinux:\n{compile_}", "main.c": PROGRAM}
    laid_out = directory / "package"
    (laid_out / "DEBIAN").mkdir(parents=True)
    (laid_out / "DEBIAN" / "control").write_text(
        "Package: linux-source-9.9\nVersion: 9.9.1-1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n"
        "Description: a kernel in miniature\n"
    )
    packed = laid_out / "usr" / "src" / "linux-source-9.9.tar.xz"
    packed.parent.mkdir(parents=True)
    with tarfile.open(packed, "w:xz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"linux-source-9.9/{name}")
            entry.size, entry.mtime = len(text), 1_700_000_000
            archive.addfile(entry, io.BytesIO(text.encode()))
    package = directory / "package.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", laid_out, package], check=True, capture_output=True)
    return package


@dataclass
class OnePackage:
    """An archive with one source, whose list may say something else than its file."""

    file: Path
    listed: Package = field(init=False)
    downloads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        content = self.file.read_bytes()
        self.listed = Package("linux-source-9.9", "9.9.1-1", len(content), hashlib.sha256(content).hexdigest())

    async def describe(self, name: str) -> Package:
        assert name == self.listed.name
        return self.listed

    async def dependencies(self, name: str) -> tuple[str, ...]:
        return ("linux-base", "linux-source-9.9") if name == "linux-source" else ()

    async def download(self, names: Sequence[str], into: Path) -> list[Path]:
        self.downloads += names
        copy = into / "linux-source.deb"
        copy.write_bytes(self.file.read_bytes())
        return [copy]


def kernels_of(cache: Path, archive: OnePackage) -> OwnKernels:
    return OwnKernels(cache, archive, missing=lambda: (), scratch_bytes=0)


@pytest.fixture
def archive(tmp_path: Path) -> OnePackage:
    return OnePackage(package_of(tmp_path))


def planted(cache: Path) -> None:
    """The distribution's kernel, in use."""
    kernel = cache / "kernel" / "linux-image-1_9.9.0-1"
    for name in ("modules-2", "modules-vsock"):
        (kernel / name).mkdir(parents=True)
    (kernel / "vmlinux").write_bytes(b"\x7fELF")
    (kernel / "sha256").write_text("ab" * 32 + "\n")
    (kernel / "modules-2" / "00-virtio.ko").write_bytes(b"module")
    make_current(kernel)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's cache with the distribution's kernel; compiled once, for it takes seconds."""
    cache = tmp_path_factory.mktemp("prepared") / "cache"
    planted(cache)
    asyncio.run(build_guest(cache))
    return cache


@pytest.fixture
def cache(prepared: Path, tmp_path: Path) -> Path:
    """A host's cache with the distribution's kernel in use."""
    return Path(shutil.copytree(prepared, tmp_path / "cache", symlinks=True))


@dataclass(frozen=True)
class Done:
    cache: Path
    archive: OnePackage
    kernel: Kernel
    built: bool
    told: list[tuple[Stage, int]]


@pytest.fixture(scope="module")
def built_once(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A build on a host where an earlier one was killed."""
    directory = tmp_path_factory.mktemp("built")
    cache = Path(shutil.copytree(prepared, directory / "cache", symlinks=True))
    archive, told = OnePackage(package_of(directory)), list[tuple[Stage, int]]()
    (cache / "kernel" / ".building" / "objects").mkdir(parents=True)
    (cache / "kernel" / ".building" / "objects" / "half").write_bytes(b"x")
    kernels = kernels_of(cache, archive)
    kernel, built = asyncio.run(kernels.build(2, lambda stage, steps: told.append((stage, steps))))
    return Done(cache, archive, kernel, built, told)


@pytest.fixture
def done(built_once: Done, tmp_path: Path) -> Done:
    """A copy of it."""
    cache = Path(shutil.copytree(built_once.cache, tmp_path / "done", symlinks=True))
    archive = OnePackage(built_once.archive.file)
    return replace(
        built_once, cache=cache, archive=archive, kernel=Kernel(cache / "kernel" / built_once.kernel.release)
    )


def silent(stage: Stage, steps: int) -> None:
    pass


def contents(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*")}


def test_a_kernel_is_built_from_the_source_and_used_from_then_on(built_once: Done) -> None:
    kernel, cache, told = built_once.kernel, built_once.cache, built_once.told
    assert built_once.built
    assert list(dict.fromkeys(stage for stage, _ in told)) == list(Stage)
    assert max(steps for stage, steps in told if stage is Stage.COMPILE) > 0
    assert built_once.archive.downloads == ["linux-source-9.9=9.9.1-1"]
    assert kernel.own
    assert kernel.release.startswith("own-9.9.1-1-")
    assert kernel.vmlinux.read_bytes().startswith(b"\x7fELF")
    assert kernel.sha256 == hashlib.sha256(kernel.vmlinux.read_bytes()).hexdigest()
    assert (kernel.directory / "config").read_text() == configuration(X86_64)
    assets = load_assets(cache)
    assert (assets.kernel, assets.kernel_hash) == (kernel.vmlinux, kernel.sha256)
    assert b"mods/00-" not in assets.initrd.read_bytes()


def test_nothing_but_the_kernel_is_left_not_even_of_a_build_that_was_killed_before(built_once: Done) -> None:
    left = {path.name for path in (built_once.cache / "kernel").iterdir()}
    assert left == {"current", "linux-image-1_9.9.0-1", "own", built_once.kernel.release}


async def test_the_same_kernel_is_built_once(done: Done) -> None:
    assert await kernels_of(done.cache, done.archive).build(1, silent) == (done.kernel, False)
    assert done.archive.downloads == []


def test_another_source_configuration_or_compiler_makes_another_kernel(archive: OnePackage) -> None:
    recipe = Recipe(archive.listed, "CONFIG_A=y\n", "gcc 1", X86_64)
    others = (
        replace(recipe, configuration="CONFIG_B=y\n"),
        replace(recipe, compiler="gcc 2"),
        replace(recipe, source=replace(archive.listed, sha256="0" * 64)),
    )
    assert len({each.release for each in (recipe, *others)}) == 4
    assert replace(recipe, configuration="# why\n\nCONFIG_A=y\n").release == recipe.release


def test_a_guest_of_the_old_kernel_finds_what_it_booted_from(cache: Path, done: Done) -> None:
    old, new = load_assets(cache), load_assets(done.cache)
    found = find_assets(done.cache, old.kernel_hash, old.initrd_hash)
    assert found is not None
    assert (found.kernel_release, found.initrd_hash) == (old.kernel_release, old.initrd_hash)
    assert found.kernel.is_file()
    assert found.initrd.is_file()
    assert find_assets(done.cache, new.kernel_hash, new.initrd_hash) == new
    assert find_assets(done.cache, new.kernel_hash, old.initrd_hash) is None
    assert find_assets(done.cache, "", "") is None


async def test_one_can_go_back_to_the_distributions_kernel_and_forth(done: Done) -> None:
    kernels = kernels_of(done.cache, done.archive)
    await kernels.use_distribution()
    assert load_assets(done.cache).kernel_release == "linux-image-1_9.9.0-1"
    assert await kernels.use_own() == done.kernel
    assert load_assets(done.cache).kernel == done.kernel.vmlinux
    assert distribution_kernel(done.cache) == Kernel(done.cache / "kernel" / "linux-image-1_9.9.0-1")


async def test_a_kernel_that_was_never_built_cannot_be_used(cache: Path, archive: OnePackage) -> None:
    with pytest.raises(HostError, match="no kernel was built"):
        await kernels_of(cache, archive).use_own()


async def test_a_kernel_without_its_initramfs_is_told_and_mended(done: Done) -> None:
    before = load_assets(done.cache)
    shutil.rmtree(before.initrd.parent)
    with pytest.raises(HostError, match="are not in"):
        load_assets(done.cache)
    assert await build_guest(done.cache) == (before, True)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"configure": "\tgrep -v CONFIG_RETPOLINE $(KCONFIG_ALLCONFIG) >$(O)/.config\n"}, "kernel-config"),
        ({"configure": "\texit 3\n"}, "kernel-config"),
        ({"compile_": "\t@echo 'main.c:1: strange word' >&2; exit 1\n"}, "kernel-build"),
        ({"compile_": "\ttrue\n"}, "kernel-build"),
    ],
    ids=["option lost", "not configured", "not compiled", "nothing made"],
)
async def test_what_fails_changes_nothing(tmp_path: Path, cache: Path, changes: dict[str, str], code: str) -> None:
    before = contents(cache)
    with pytest.raises(HostError) as refused:
        await kernels_of(cache, OnePackage(package_of(tmp_path, **changes))).build(1, silent)
    assert refused.value.code == code
    assert contents(cache) == before
    if "RETPOLINE" in str(changes):
        assert "CONFIG_RETPOLINE=y" in refused.value.brief
    if "strange" in str(changes):
        assert "strange word" in refused.value.details


async def test_a_damaged_download_is_refused_before_it_is_unpacked(cache: Path, archive: OnePackage) -> None:
    before = contents(cache)
    content = bytearray(archive.file.read_bytes())
    content[-200] ^= 1
    archive.file.write_bytes(content)
    with pytest.raises(HostError) as refused:
        await kernels_of(cache, archive).build(1, silent)
    assert refused.value.code == "package-damaged"
    assert contents(cache) == before


async def test_without_room_or_tools_nothing_is_fetched(cache: Path, archive: OnePackage) -> None:
    kernels = kernels_of(cache, archive)
    refusals: list[PlasmaError] = []
    for poor in (
        replace(kernels, scratch_bytes=1 << 60),
        replace(kernels, missing=lambda: ("bison", "flex")),
    ):
        with pytest.raises((CapacityError, HostError)) as refused:
            await poor.build(1, silent)
        refusals.append(refused.value)
    assert [error.code for error in refusals] == ["no-space", "missing-tools"]
    assert refusals[1].resolution == "apt-get install bison flex"
    assert archive.downloads == []


async def test_a_build_that_is_interrupted_leaves_nothing_and_no_process(tmp_path: Path, cache: Path) -> None:
    before = contents(cache)
    building = asyncio.create_task(kernels_of(cache, OnePackage(package_of(tmp_path, compile_=HANG))).build(1, silent))
    site = cache / "kernel" / ".building"
    async with asyncio.timeout(PATIENCE_S):
        while not (site / "objects" / "begun").exists():
            assert not building.done(), building
            await asyncio.sleep(0.02)
    with pytest.raises(ConflictError, match="already"):
        await kernels_of(cache, OnePackage(tmp_path / "package.deb")).build(1, silent)
    building.cancel()
    await asyncio.wait({building})
    assert building.cancelled()
    assert contents(cache) == before
    with building_site(cache / "kernel"):
        pass  # no child holds it any more


def test_the_command_lines_keep_source_and_objects_apart() -> None:
    work = Workplace(Path("/s"), Path("/o"), Path("/f"), 3, X86_64)
    make = ["make", "-C", "/s", "O=/o", "ARCH=x86"]
    assert work.configure_argv() == [*make, "KCONFIG_ALLCONFIG=/f", "allnoconfig"]
    assert work.compile_argv() == ["nice", "-n", "19", *make, "-j3", "vmlinux"]
    assert work.strip_argv(Path("/k")) == ["objcopy", "-R", ".comment", "-S", "/o/vmlinux", "/k"]


def test_the_kernel_tells_the_time_of_its_source_and_nothing_of_the_host() -> None:
    assert environment(1_700_000_000.0) == {
        "KBUILD_BUILD_USER": "plasmavmc",
        "KBUILD_BUILD_HOST": "localhost",
        "KBUILD_BUILD_VERSION": "1",
        "KBUILD_BUILD_TIMESTAMP": "Tue Nov 14 22:13:20 UTC 2023",
    }


@pytest.mark.parametrize(
    ("own", "distribution", "lacks"),
    [
        ("own-6.1.9-2-0123456789ab", "linux-image-6.1.0-56-cloud-amd64_6.1.10-1", True),
        ("own-6.1.10-1-0123456789ab", "linux-image-6.1.0-56-cloud-amd64_6.1.10-1", False),
        ("own-6.1.10-2-0123456789ab", "linux-image-6.1.0-56-cloud-amd64_6.1.10-1", False),
    ],
)
def test_a_kernel_of_an_older_source_lacks_fixes(own: str, distribution: str, lacks: bool) -> None:
    assert lacks_fixes(Kernel(Path(own)), Kernel(Path(distribution))) is lacks


def test_doctor_tells_which_kernel_is_used_and_when_it_lacks_fixes(done: Done) -> None:
    assert any(done.kernel.release in each.message for each in check_host(done.cache))
    newer = done.cache / "kernel" / "linux-image-2_9.9.2-1"
    (done.cache / "kernel" / "linux-image-1_9.9.0-1").rename(newer)
    make_current(newer)
    (found,) = [each for each in check_host(done.cache) if each.check == "cache"]
    assert (found.state, found.remedy) == (State.WARN, "Run as root: plasmavmc kernel build")


def test_options_that_were_not_taken_are_named() -> None:
    wanted = '# why\nCONFIG_A=y\nCONFIG_B="x y"\nCONFIG_C=17\n'
    assert lost_options(wanted, "CONFIG_A=y\n# CONFIG_D is not set\nCONFIG_C=16\n") == ('CONFIG_B="x y"', "CONFIG_C=17")


def test_the_configuration_asks_for_each_option_once_and_for_no_module() -> None:
    options = [line for line in configuration(X86_64).splitlines() if line and not line.startswith("#")]
    names = [option.partition("=")[0] for option in options]
    assert len(names) == len(set(names))
    assert not [option for option in options if option.endswith("=m")]
    for mitigation in ("CPU_MITIGATIONS", "RETPOLINE", "PAGE_TABLE_ISOLATION", "CPU_SRSO", "MITIGATION_ITS"):
        assert f"CONFIG_{mitigation}=y" in options


def test_missing_tools_are_told_by_their_packages() -> None:
    assert missing_packages(lambda name: name not in ("ld", "objcopy", "flex"), lambda _: False) == (
        "binutils",
        "flex",
        "libelf-dev",
    )
    assert missing_packages(lambda _: True, lambda _: True) == ()


def test_a_package_is_read_from_what_apt_says_of_it() -> None:
    said = (
        "Package: linux-source-6.1\nVersion: 6.1.192-2\nSize: 139331676\nDescription: x\n y\nSHA256: " + "a" * 64 + "\n"
    )
    older = "\nPackage: linux-source-6.1\nVersion: 6.1.170-3\n"
    assert parse_package(said + older) == Package("linux-source-6.1", "6.1.192-2", 139331676, "a" * 64)
    with pytest.raises(HostError, match="does not know"):
        parse_package("")


async def test_an_archive_without_a_source_is_told(archive: OnePackage) -> None:
    class Empty(OnePackage):
        async def dependencies(self, name: str) -> tuple[str, ...]:
            return ("linux-base",)

    with pytest.raises(HostError, match="no source"):
        await newest_source(Empty(archive.file))
