"""Names, /proc and cgroups: the parts of the helper that only look or compute."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.host.helper.cgroups import V1, V2, DirectoryCgroups, Layout, layouts, parse_mounts, settings
from plasmavmc.host.helper.programs import check_program
from plasmavmc.host.helper.spawn import numbered, rlimits_for
from plasmavmc.host.helper.sweep import vmm_key
from plasmavmc.host.kernel import lacking
from plasmavmc.host.names import (
    CODE_OF_LINK,
    HostNames,
    installation_key,
    is_cgroup_name,
    is_key,
    is_shaper,
    shaper_name,
    tap_name,
)
from plasmavmc.host.operations import PLACED_LIMITS, RESOLVER_CGROUP, Limits, ProcessId
from plasmavmc.host.processes import argv_of, has_process, held, is_alive, kill, parse_stat, read_process, uids_of
from plasmavmc.types import MIB, vm_key

NAMES = HostNames.of("swg_parts")


@given(st.from_regex(r"[a-z][a-z0-9_]{2,63}", fullmatch=True), st.from_regex(r"[a-z][a-z0-9_]{2,63}", fullmatch=True))
def test_every_name_fits_its_place_and_tells_its_owner(installation: str, vm: str) -> None:
    names, key = HostNames.of(installation), vm_key(vm)
    tap = names.tap(key)
    assert len(tap) == 15
    assert tap == tap_name(names.code, key)
    for link in (tap, names.bridge):
        match = CODE_OF_LINK.fullmatch(link)
        assert match is not None
        assert match[1] == names.code
    assert is_key(key)
    assert is_key(installation_key(installation))
    assert vmm_key(names, ("/usr/bin/qemu-system-x86_64", "-name", names.process(key))) == key


@pytest.mark.parametrize("name", ["vm-abc", "..", "", "a/b", "A", "x" * 33])
def test_a_placed_cgroup_cannot_pass_for_a_vms(name: str) -> None:
    assert not is_cgroup_name(name)


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("/usr/bin/qemu-system-x86_64",),
        ("/usr/bin/qemu-system-x86_64", "-name"),
        ("/usr/bin/qemu-system-x86_64", "-name", "web"),
        ("/usr/bin/qemu-system-x86_64", "-name", "swg-aaaaaaaaaaaa-bbbbbbbbbbbb"),
        ("/usr/bin/vim", "-name", NAMES.process("bbbbbbbbbbbb")),
    ],
)
def test_a_process_that_is_not_a_vmm_of_ours_is_foreign(argv: tuple[str, ...]) -> None:
    assert vmm_key(NAMES, argv) is None


def test_a_process_name_may_hold_anything() -> None:
    line = "42 (a) Z ) 3) S 7 42 42 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 1 0 9999 1 2 3"
    process = parse_stat(42, line)
    assert process is not None
    assert (process.id, process.parent) == (ProcessId(42, 9999), 7)
    assert parse_stat(42, line.replace(") S 7", ") Z 7")) is None


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["sleep", "60"])
    found = read_process(child.pid)
    assert found is not None
    assert is_alive(found.id)
    assert kill(found.id, timeout_s=5)
    assert not is_alive(found.id)
    with held(found.id) as pidfd:
        assert pidfd is None
    assert child.wait() == -signal.SIGKILL


_FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.fixture
def without_first_thread() -> Iterator[int]:
    """The number of a process whose first thread has ended, and another one runs on."""
    child = subprocess.Popen([sys.executable, "-c", _FIRST_THREAD_ENDS])
    try:
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, "its first thread ends"
            time.sleep(0.01)
        yield child.pid
    finally:
        child.kill()
        child.wait()


def test_a_process_whose_first_thread_ended_lives_while_another_runs_on(without_first_thread: int) -> None:
    found = read_process(without_first_thread)
    assert found is not None
    assert is_alive(found.id)
    assert kill(found.id, timeout_s=5)
    assert not is_alive(found.id)


def test_a_later_process_of_the_same_number_is_not_hit() -> None:
    child = subprocess.Popen(["sleep", "60"])
    found = read_process(child.pid)
    assert found is not None
    assert kill(ProcessId(child.pid, found.id.start_time + 1), timeout_s=0)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_what_proc_tells_of_ourselves_is_true() -> None:
    assert uids_of(os.getpid()) == {os.getuid()}
    assert has_process(os.getuid())
    assert not has_process(2_147_000_001)
    assert argv_of(os.getpid())
    assert uids_of(2**22 + 1) == frozenset()


HYBRID = """tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""


def test_what_holds_a_tap_back_has_a_name_that_no_tap_has() -> None:
    tap = tap_name("aaaa", "234567234567")
    assert shaper_name(tap) == "swgaaaa2345672+"
    assert len(shaper_name(tap)) == len(tap)
    assert is_shaper(shaper_name(tap))
    assert not is_shaper(tap)


def test_what_a_kernel_lacks_is_neither_built_in_nor_a_module() -> None:
    configuration = "CONFIG_IFB=m\nCONFIG_NET_SCH_TBF=y\n# CONFIG_NET_CLS_U32 is not set\nCONFIG_NET_CLS_U32_PERF=y\n"
    assert lacking(configuration, ("IFB", "NET_SCH_TBF", "NET_CLS_U32", "SCH_TBF")) == ("NET_CLS_U32", "SCH_TBF")


def test_version_2_is_tried_before_version_1() -> None:
    found = layouts(parse_mounts(HYBRID), "swg-x")
    assert found == [
        Layout(V2, (Path("/sys/fs/cgroup/unified/swg-x"),)),
        Layout(
            V1,
            (
                Path("/sys/fs/cgroup/memory/swg-x"),
                Path("/sys/fs/cgroup/cpu,cpuacct/swg-x"),
                Path("/sys/fs/cgroup/pids/swg-x"),
            ),
            watched=Path("/sys/fs/cgroup/unified/swg-x"),
        ),
    ]


def test_version_1_needs_all_three_controllers() -> None:
    mounts = parse_mounts(HYBRID.replace("rw,pids", "rw,freezer"))
    assert [layout.confinement for layout in layouts(mounts, "swg-x")] == [V2]
    assert layouts((), "swg-x") == []


def test_limits_are_written_in_each_versions_words() -> None:
    limits = Limits(256 * MIB, 1500, pids=64)
    assert settings(V2, limits)["cpu.max"] == "150000 100000"
    assert settings(V2, limits)["memory.max"] == str(256 * MIB)
    assert settings(V1, limits)["cpu.cfs_quota_us"] == "150000"
    assert settings(V1, limits)["memory.limit_in_bytes"] == str(256 * MIB)


def a_v2_tree(path: Path, controllers: str) -> Path:
    """A directory that looks like a cgroup2 mount."""
    path.mkdir()
    (path / "cgroup.subtree_control").write_text(controllers)
    return path


def test_version_2_passes_its_controllers_on_twice(tmp_path: Path) -> None:
    root = a_v2_tree(tmp_path / "cgroup", "cpuset")
    parent = a_v2_tree(root / "swg-x", "")
    DirectoryCgroups.prepared(Layout(V2, (parent,)))
    assert (root / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert (parent / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"


def test_beside_version_1_a_group_is_made_where_pressure_can_be_read(tmp_path: Path) -> None:
    limited, watched = tmp_path / "swg-x", tmp_path / "unified" / "swg-x"
    watched.parent.mkdir()
    groups = DirectoryCgroups.prepared(Layout(V1, (limited,), watched))
    assert groups.make("vm-a", None) == (limited / "vm-a/cgroup.procs", watched / "vm-a/cgroup.procs")
    without = DirectoryCgroups.prepared(Layout(V1, (limited,), tmp_path / "not mounted" / "swg-x"))
    assert without.make("vm-b", None) == (limited / "vm-b/cgroup.procs",)


def test_a_limit_that_cannot_be_set_is_an_error_and_leaves_no_group(tmp_path: Path) -> None:
    (tmp_path / "swg-x").mkdir()
    groups = DirectoryCgroups(Layout(V2, (tmp_path / "swg-x",)))
    with pytest.raises(HostError) as caught:
        groups.make("vm-a", Limits(256 * MIB, 1000))
    assert caught.value.code == "host-cgroup"
    assert groups.children() == frozenset()


def test_a_group_that_ends_takes_nobody_in_and_what_is_in_it_is_killed(tmp_path: Path) -> None:
    limited, watched = tmp_path / "swg-x" / "vm-a", tmp_path / "unified" / "vm-a"
    groups = DirectoryCgroups(Layout(V1, (limited.parent, watched.parent)))
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    listed = "".join(f"{child.pid}\n" for child in children)
    for place, files in ((limited, {"pids.max": "max"}), (watched, {"cgroup.kill": ""})):
        place.mkdir(parents=True)
        for name, content in {"cgroup.procs": listed, **files}.items():
            (place / name).write_text(content)
    groups.end("vm-a")
    assert [child.wait(5) for child in children] == [-signal.SIGKILL] * 2
    assert ((limited / "pids.max").read_text(), (watched / "cgroup.kill").read_text()) == ("0", "1")


def test_the_resolvers_memory_is_bounded_where_it_is_placed() -> None:
    limits = PLACED_LIMITS[RESOLVER_CGROUP]
    assert settings(V2, limits)["memory.max"] == str(512 << 20)
    assert settings(V1, limits)["memory.limit_in_bytes"] == str(512 << 20)


def test_without_cgroups_rlimits_bound_the_memory() -> None:
    limits = Limits(256 * MIB, 1000)
    assert len(rlimits_for(limits, confined=False)) == len(rlimits_for(limits, confined=True)) + 2


def test_descriptors_are_numbered_after_the_standard_three() -> None:
    assert numbered(["a", "b"]) == {"a": 3, "b": 4}


def test_a_program_that_others_could_change_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "vmm"
    program.write_text("#!/bin/sh\n")
    tmp_path.chmod(0o777)
    with pytest.raises(HostError) as caught:
        check_program(program)
    assert caught.value.code == "helper-refused"
    with pytest.raises(HostError) as caught:
        check_program(tmp_path / "absent")
    assert caught.value.code == "missing-program"
    check_program(Path("/usr/bin/env"))
