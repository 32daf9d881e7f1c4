"""Jails as values: the jailer's command line, names of files, and whose process a Firecracker is."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.host.helper.jails import JailPrograms, check_files, jailer_argv
from plasmavmc.host.helper.sweep import vmm_key
from plasmavmc.host.names import HostNames
from plasmavmc.hypervisor.firecracker.requests import API_SOCKET, SOCKET_DIRECTORY
from plasmavmc.types import vm_key

NAMES = HostNames.of("swg_one")
KEY = vm_key("vm_one")
PROGRAMS = JailPrograms("/usr/local/bin/jailer", "/usr/local/bin/firecracker")
WANTED = [
    *("/usr/bin/unshare", "--net", "--ipc", "--uts", "--"),
    *("/usr/local/bin/jailer", "--id", NAMES.process(KEY)),
    *("--exec-file", "/usr/local/bin/firecracker"),
    *("--uid", "2000000007", "--gid", "2000000007"),
    *("--chroot-base-dir", "/jails/one"),
    *("--", "--api-sock", "/s/api.sock", "--level", "Warn"),
]


def test_the_jailer_gets_the_vms_own_id_and_uid_and_an_empty_network() -> None:
    assert jailer_argv(PROGRAMS, Path("/jails/one"), NAMES.process(KEY), 2_000_000_007, wired=False) == WANTED


def test_a_vm_with_a_tap_gets_the_namespace_that_comes_as_a_descriptor() -> None:
    argv = jailer_argv(PROGRAMS, Path("/jails/one"), NAMES.process(KEY), 2_000_000_007, wired=True)
    assert argv == ["/usr/bin/nsenter", "--net=/proc/self/fd/3", "--", WANTED[0], *WANTED[2:]]
    assert vmm_key(NAMES, tuple(argv)) == KEY


def test_the_api_is_where_the_driver_looks_for_it() -> None:
    assert WANTED[-3] == f"{SOCKET_DIRECTORY}/{API_SOCKET}"


def test_an_instances_id_is_one_that_the_jailer_takes() -> None:
    name = NAMES.process(KEY)
    assert len(name) <= 64
    assert set(name) <= set(string.ascii_letters + string.digits + "-")


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (WANTED, KEY),
        (WANTED[WANTED.index("--") + 1 :], KEY),
        (["/firecracker", "--id", NAMES.process(KEY), "--start-time-us", "1"], KEY),
        (["/firecracker", "--id"], None),
        (["/firecracker", "--id", "swg-somebodyelse-" + KEY], None),
        (["/bin/cat", "--id", NAMES.process(KEY)], None),
        ([], None),
    ],
)
def test_whose_vm_a_process_is(argv: list[str], key: str | None) -> None:
    assert vmm_key(NAMES, tuple(argv)) == key


@pytest.mark.parametrize("names", [(), ("kernel", "initrd", "disk0", "disk11")])
def test_names_of_files_are_taken(names: tuple[str, ...]) -> None:
    check_files(names, len(names))


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (("kernel", "kernel"), 2),
        (("kernel",), 2),
        (("kernel",), 0),
        (("s",), 1),
        (("../kernel",), 1),
        (("disk",), 1),
        (("disk100",), 1),
        (("kernel\n",), 1),
        (("firecracker",), 1),
    ],
)
def test_other_names_are_refused(names: tuple[str, ...], count: int) -> None:
    with pytest.raises(HostError) as refused:
        check_files(names, count)
    assert refused.value.code == "helper-refused"


@given(st.text(max_size=30))
def test_no_name_leads_out_of_the_jail(name: str) -> None:
    try:
        check_files((name,), 1)
    except HostError:
        return
    assert name.isascii()
    assert name.isalnum()
