"""The helper's list of what a VMM may be told."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.backends import Acceleration
from plasmavmc.errors import HostError
from plasmavmc.host.configuration import QEMU
from plasmavmc.host.helper.argv import SANDBOX, check_argv, final_argv, wants_kvm, wants_kvm_descriptor
from plasmavmc.host.helper.worker import command_line as worker_command_line
from plasmavmc.hypervisor.backend import DiskPlan, MemoryPlan, NicPlan
from plasmavmc.hypervisor.qemu.argv import QemuMachine, command_line
from plasmavmc.types import RateLimit, VmResources, mac_of

NAME = "swg-aaaaaaaaaaaa-bbbbbbbbbbbb"
BASE = (QEMU, "-name", NAME)


def accept(*more: str, fds: Sequence[str] = ()) -> None:
    check_argv((*BASE, *more), process_name=NAME, vmms=[QEMU], fds=fds)


def refuse(*more: str, fds: Sequence[str] = ()) -> None:
    with pytest.raises(HostError) as caught:
        accept(*more, fds=fds)
    assert caught.value.code == "helper-refused"


@pytest.mark.parametrize("own_kernel", [True, False])
@pytest.mark.parametrize("acceleration", [Acceleration.KVM, Acceleration.TCG])
def test_what_our_own_backend_says_is_accepted(own_kernel: bool, acceleration: Acceleration) -> None:
    machine = QemuMachine(QEMU, "a" * 12, acceleration, 2_000_000)
    disks = [
        DiskPlan("image", 3, read_only=True, limit=RateLimit(operations_per_second=100)),
        DiskPlan("layer", 4, read_only=False, limit=RateLimit(2**32, 100)),
        DiskPlan("volume", 7, read_only=False),
    ]
    for memory in (None, MemoryPlan(6, own=True), MemoryPlan(6, own=False)):
        nics = [NicPlan("n0", 5, mac_of("nic_1"))]
        command = command_line(
            machine, "b" * 12, VmResources(), disks, nics, memory=memory, reclaim=True, own_kernel=own_kernel
        )
        check_argv(command.argv, process_name=NAME, vmms=[QEMU], fds=command.descriptors)
    assert wants_kvm(command.argv) is (acceleration is Acceleration.KVM)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-monitor", "stdio"),
        ("-gdb", "tcp::1234"),
        ("-s",),
        ("-plugin", "/tmp/x.so"),
        ("-daemonize",),
        ("-runas", "root"),
        ("-pidfile", "/etc/x"),
        ("-D", "/etc/x"),
        ("-fsdev", "local,id=f,path=/"),
        ("-virtfs", "local,path=/,mount_tag=t,security_model=none"),
        ("-sandbox", "off"),
        ("--monitor", "stdio"),
        ("-readconfig", "/tmp/x"),
        ("-qmp", "tcp:0.0.0.0:4444,server"),
        ("-vnc", ":1"),
        ("-hda", "/etc/shadow"),
        ("/etc/shadow",),
        ("-drive", "if=none,id=d,file=/etc/shadow,format=raw"),
        ("-drive", "if=none,id=d,file=/dev/fdset/1,format=qcow2"),
        ("-drive", "if=none,id=d,file=/dev/fdset/../../etc/shadow,format=raw"),
        ("-blockdev", "driver=raw,node-name=d,file.driver=file,file.filename=/etc/shadow"),
        ("-blockdev", "driver=nbd,node-name=d,server.host=10.0.0.1"),
        (
            "-blockdev",
            json.dumps({"driver": "raw", "node-name": "d", "file": {"driver": "file", "filename": "/etc/shadow"}}),
        ),
        ("-blockdev", json.dumps({"driver": "raw", "file": ["x"]})),
        ("-blockdev", "{" * 4000),
        ("-chardev", "file,id=c,path=/etc/x"),
        ("-chardev", "pipe,id=c,path=/tmp/x"),
        ("-chardev", "socket,id=c,host=0.0.0.0,port=1,server=on,wait=off"),
        ("-chardev", "socket,id=c,path=/run/x,server=on,wait=off"),
        ("-chardev", "null,id=c,logfile=/etc/x"),
        ("-mon", "chardev=c,mode=readline"),
        ("-netdev", "user,id=n"),
        ("-netdev", "tap,id=n,ifname=eth0,script=/tmp/x"),
        ("-device", "vfio-pci,host=01:00.0"),
        ("-device", "virtio-net-device,netdev=n,romfile=/etc/shadow"),
        ("-device", "ivshmem-doorbell,chardev=c"),
        ("-object", "memory-backend-file,id=m,size=1M,mem-path=/etc/shadow"),
        ("-object", "memory-backend-file,id=m,size=1M,mem-path=/dev/fd/0"),
        ("-object", "memory-backend-file,id=m,size=1M,mem-path=/dev/fdset/1"),
        ("-object", "secret,id=s,file=/etc/shadow"),
        ("-object", '{"qom-type":"secret","id":"s","file":"/etc/shadow"}'),
        ("-object", '{"qom-type":"throttle-group","id":"g","limits":{"bps-total":-1}}'),
        ("-object", '{"qom-type":"throttle-group","id":"g","limits":{"bps-total":1},"file":"/etc/shadow"}'),
        ("-kernel", "/etc/shadow"),
        ("-initrd", "/dev/fd/../../etc/shadow"),
        ("-M", "microvm,firmware=/etc/shadow"),
        ("-M", "none,dumpdtb=/etc/x"),
        ("-accel", "kvm,device=/dev/sda"),
        ("-append", "a\nb"),
        ("-append", "x" * 2049),
        ("-incoming", "exec:id"),
        ("-L", "/tmp"),
        ("-bios", "../../etc/shadow"),
        ("-serial", "file:/etc/x"),
        ("-global", "virtio-blk-device.drive=x"),
        ("-name",),
        ("-name", "swg-aaaaaaaaaaaa-cccccccccccc"),
        ("-name", NAME),
        ("-S\n",),
        ("-m", "256M\n"),
    ],
)
def test_what_could_reach_beyond_the_vm_is_refused(arguments: tuple[str, ...]) -> None:
    refuse(*arguments)


def test_another_program_is_refused() -> None:
    for program in ("/bin/sh", "qemu-system-x86_64", f"{QEMU}/../sh", ""):
        with pytest.raises(HostError):
            check_argv((program, "-name", NAME), process_name=NAME, vmms=[QEMU], fds=())


def test_a_name_is_required() -> None:
    with pytest.raises(HostError):
        check_argv((QEMU, "-S"), process_name=NAME, vmms=[QEMU], fds=())


def test_each_descriptor_is_given_and_used_exactly_once() -> None:
    accept("-add-fd", "fd=@image@,set=1", fds=["image"])
    refuse("-add-fd", "fd=@image@,set=1")
    refuse(fds=["image"])
    refuse("-add-fd", "fd=@image@,set=1", "-add-fd", "fd=@image@,set=2", fds=["image"])
    refuse("-add-fd", "fd=3,set=1")
    accept("-object", "memory-backend-file,id=m,size=1M,mem-path=/dev/fd/@memory@,share=on", fds=["memory"])
    refuse("-object", "memory-backend-file,id=m,size=1M,mem-path=/dev/fd/@memory@,share=on")


def test_tokens_become_numbers_and_the_sandbox_comes_last() -> None:
    argv = (*BASE, "-machine", "none", "-S", "-append", "a=@b@", "-add-fd", "fd=@b@,set=1", "-kernel", "/dev/fd/@c@")
    final = final_argv(argv, {"b": 3, "c": 4})
    head = [*BASE, "-M", "none", "-S", "-append", "a=@b@", "-add-fd", "fd=3,set=1", "-kernel", "/dev/fd/4"]
    assert final == [*head, *SANDBOX]


def test_the_helper_opens_kvm_itself() -> None:
    argv = ("-accel", "kvm,device=/dev/fdset/9", "-add-fd", "fd=@kvm@,set=9")
    accept(*argv)
    refuse(*argv, fds=["kvm"])
    assert wants_kvm_descriptor((*BASE, *argv))
    assert not wants_kvm_descriptor(BASE)


def test_a_worker_has_a_name_and_a_control_socket_and_nothing_else() -> None:
    name = ("-name", NAME)
    worker = ("wasm-worker", *name, "-control", "@c@")
    check_argv(worker, process_name=NAME, vmms=["wasm-worker"], fds=["c"])
    assert worker_command_line(worker, {"c": 3})[-4:] == ["-name", NAME, "-control", "3"]
    for wrong in (
        ("wasm-worker", *name),
        (*worker, "-S"),
        ("wasm-worker", "-control", "@c@", *name),
        ("wasm-worker", *name, "-control", "3"),
    ):
        with pytest.raises(HostError) as refused:
            check_argv(wrong, process_name=NAME, vmms=["wasm-worker"], fds=["c"] if "@c@" in wrong else [])
        assert refused.value.code == "helper-refused"


def test_a_control_socket_is_a_workers_alone() -> None:
    refuse("-control", "@c@", fds=["c"])


words = st.text(st.characters(codec="utf-8"), max_size=60)
options = st.sampled_from(
    ["-M", "-drive", "-blockdev", "-chardev", "-device", "-netdev", "-object", "-kernel", "-S", "-name"]
)
lead_ins = st.sampled_from(
    [
        "",
        "microvm,",
        "driver=raw,",
        "socket,id=c,",
        "virtio-blk-device,drive=d,",
        "tap,id=n,",
        "rng-builtin,id=",
        "/dev/fd/",
        "{",
    ]
)


@given(st.lists(st.tuples(options, lead_ins, words), max_size=4))
def test_no_command_line_crashes_the_check_or_smuggles_a_path(parts: list[tuple[str, str, str]]) -> None:
    arguments = [argument for option, lead_in, word in parts for argument in (option, lead_in + word)]
    try:
        accept(*arguments)
    except HostError as error:
        assert error.code == "helper-refused"  # noqa: PT017 - both outcomes are fine, a crash is not
    else:
        paths = [argument for argument in arguments if "/" in argument]
        assert all(path.startswith(("/dev/fd/", "/dev/fdset/")) for path in paths)
