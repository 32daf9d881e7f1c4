"""The QEMU command line as a value."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from plasmavmc.backends import Acceleration
from plasmavmc.host.architecture import X86_64
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.memory import MemoryHost
from plasmavmc.hypervisor.backend import DiskPlan, NicPlan
from plasmavmc.hypervisor.limits import limits_of
from plasmavmc.hypervisor.qemu.argv import QemuMachine, command_line, gives_back, kernel_parameters
from plasmavmc.hypervisor.qemu.backend import KvmBackend
from plasmavmc.hypervisor.qemu.drivers import BALLOON_DRIVER, drives
from plasmavmc.hypervisor.qemu.offer import QemuSite
from plasmavmc.types import MIB, RateLimit, Scope, VmResources, VmSpec

TCG = QemuMachine("/usr/bin/qemu-system-x86_64", "i1", Acceleration.TCG, tsc_khz=2_596_000)
KVM = QemuMachine("/usr/bin/qemu-system-x86_64", "i1", Acceleration.KVM, tsc_khz=2_596_000)
IMAGE = DiskPlan("image", 7, read_only=True)
LAYER = DiskPlan("layer", 8, read_only=False)
NIC = NicPlan("n0", 9, "02:00:00:00:00:01")


def values(argv: tuple[str, ...], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def test_an_emulated_vm_is_a_microvm_with_a_full_cpu_and_a_small_translation_cache() -> None:
    argv = command_line(TCG, "k1", VmResources(vcpus=2, memory_bytes=512 * MIB), (IMAGE, LAYER), (NIC,)).argv
    assert argv == (
        *("/usr/bin/qemu-system-x86_64", "-name", "swg-i1-k1"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-S", "-display", "none"),
        *("-M", "microvm,acpi=on,memory-backend=mem", "-accel", "tcg,tb-size=32", "-cpu", "max"),
        *("-smp", "cpus=2,sockets=1,cores=2,threads=1", "-m", "512M"),
        *("-object", "memory-backend-memfd,id=mem,size=512M,share=on"),
        *("-kernel", "/dev/fd/@kernel@", "-initrd", "/dev/fd/@initrd@"),
        "-append",
        "console=ttyS0 reboot=t 8250.nr_uarts=1 no_timer_check quiet panic=-1 cryptomgr.notests audit=0 init_on_alloc=0 "
        "tsc=reliable tsc_early_khz=2596000",
        *("-add-fd", "fd=@disk0@,set=0", "-blockdev"),
        "driver=raw,node-name=d0,file.driver=file,file.filename=/dev/fdset/0,file.locking=off,read-only=on",
        *("-device", "virtio-blk-device,drive=d0"),
        *("-add-fd", "fd=@disk1@,set=1", "-blockdev"),
        "driver=raw,node-name=d1,file.driver=file,file.filename=/dev/fdset/1,file.locking=off,"
        "discard=unmap,file.discard=unmap",
        *("-device", "virtio-blk-device,drive=d1,werror=report"),
        *("-netdev", "tap,id=n0,fd=@tap0@", "-device", "virtio-net-device,netdev=n0,mac=02:00:00:00:00:01"),
        *("-device", "virtio-serial-device", "-chardev", "socket,id=c0,fd=@channel@,server=on,wait=off"),
        *("-device", "virtserialport,chardev=c0,name=ctl,nr=1"),
        *("-chardev", "socket,id=s0,fd=@console@,server=on,wait=off", "-serial", "chardev:s0"),
        *("-chardev", "socket,id=q0,fd=@qmp@,server=on,wait=off", "-mon", "chardev=q0,mode=control"),
    )


def test_a_sealed_disk_is_opened_with_a_secret_that_no_argument_holds() -> None:
    sealed = DiskPlan("data", 10, read_only=False, secret=11)
    command = command_line(TCG, "k1", VmResources(), (IMAGE, LAYER, sealed), ())
    assert "secret,id=k2,format=raw,file=/dev/fd/@secret2@" in values(command.argv, "-object")
    assert values(command.argv, "-blockdev")[2] == (
        "driver=luks,key-secret=k2,node-name=d2,file.driver=file,file.filename=/dev/fdset/2,file.locking=off,"
        "discard=unmap,file.discard=unmap"
    )
    assert {"disk2", "secret2"} <= set(command.descriptors)
    assert "secret0" not in command.descriptors


def test_a_sealed_disk_with_a_limit_is_opened_below_it() -> None:
    sealed = DiskPlan("data", 10, read_only=False, limit=RateLimit(10 * MIB), secret=11)
    disks = values(command_line(TCG, "k1", VmResources(), (sealed,), ()).argv, "-blockdev")
    assert disks[0].startswith("driver=luks,key-secret=k0,node-name=f0,")
    assert disks[1].startswith("driver=throttle,node-name=d0,throttle-group=g0,file=f0,")


def test_a_hardware_vm_has_the_host_s_cpu_and_kvm_s_clock() -> None:
    argv = command_line(KVM, "k1", VmResources(), (IMAGE,), ()).argv
    assert values(argv, "-accel") == ["kvm"]
    assert values(argv, "-cpu") == ["host"]
    assert "tsc" not in kernel_parameters(KVM)


def test_a_kernel_of_our_own_is_told_its_devices_on_the_command_line_and_the_rest_is_the_same() -> None:
    ours, theirs = (
        command_line(TCG, "k1", VmResources(), (IMAGE,), (NIC,), own_kernel=own).argv for own in (True, False)
    )
    assert values(ours, "-M") == ["microvm,acpi=off,memory-backend=mem"]
    differ = [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other]
    assert len(differ) == 1


def test_another_architecture_is_other_words_and_the_same_line() -> None:
    other = replace(
        X86_64,
        qemu_machine="virt",
        emulated_cpu="cortex-a72",
        kernel_parameters=("console=ttyAMA0",),
        emulated_clock=(),
    )
    machine = replace(TCG, program="/usr/bin/qemu-system-other", architecture=other)
    argv = command_line(machine, "k1", VmResources(), (IMAGE,), (NIC,)).argv
    assert (values(argv, "-M"), values(argv, "-cpu")) == (["virt,memory-backend=mem"], ["cortex-a72"])
    assert kernel_parameters(machine).startswith("console=ttyAMA0 quiet ")
    assert not re.search(r"ttyS0|tsc|x86|8250|acpi", " ".join(argv))


def test_each_token_has_a_descriptor_and_each_descriptor_a_token() -> None:
    command = command_line(TCG, "k1", VmResources(), (IMAGE, LAYER, LAYER), (NIC, NIC))
    tokens = re.findall(r"@(\w+)@", " ".join(command.argv))
    assert sorted(tokens) == sorted(command.descriptors)
    assert len(set(tokens)) == len(tokens)


def test_disks_stand_before_other_devices_and_in_the_order_of_the_plan() -> None:
    devices = values(command_line(TCG, "k1", VmResources(), (IMAGE, LAYER, LAYER), (NIC,)).argv, "-device")
    assert [device.split(",")[1] for device in devices[:3]] == ["drive=d0", "drive=d1", "drive=d2"]


def test_a_limit_is_a_filter_before_its_disk_that_the_guest_does_not_see() -> None:
    limited = replace(LAYER, limit=RateLimit(bytes_per_second=5_000_000, operations_per_second=200))
    with_limit = command_line(TCG, "k1", VmResources(), (IMAGE, limited), ()).argv
    without = command_line(TCG, "k1", VmResources(), (IMAGE, LAYER), ()).argv
    group = '{"qom-type":"throttle-group","id":"g1","limits":{"bps-total":5000000,"iops-total":200}}'
    assert group in values(with_limit, "-object")
    filtered = "driver=throttle,node-name=d1,throttle-group=g1,file=f1,discard=unmap"
    assert values(with_limit, "-blockdev")[-1] == filtered
    assert values(with_limit, "-device") == values(without, "-device"), "a state may be loaded under another limit"


def test_what_a_vm_frees_goes_back_unless_it_may_be_copied() -> None:
    devices = values(command_line(TCG, "k1", VmResources(), (IMAGE,), (NIC,), reclaim=True).argv, "-device")
    assert devices[-1] == "virtio-balloon-device,free-page-reporting=on"
    spec = VmSpec("vm_a", Scope("o", "p"), "a", "")
    assert gives_back(spec)
    assert not gives_back(replace(spec, snapshot_safe=True))


def test_a_kernel_of_our_own_leaves_room_for_three_volumes(tmp_path: Path) -> None:
    most = {}
    for release in ("own-6.1", "linux-image-6.1"):
        kernel = tmp_path / release / "vmlinux"
        kernel.parent.mkdir()
        kernel.write_bytes(b"")
        site = QemuSite(Path("/qemu"), "i1", 1, kernel, kernel, tmp_path, tmp_path)
        backend = KvmBackend(MemoryHost(HelperConfiguration("swg_test", 0, 0)), site.machine(Acceleration.TCG))
        most[release] = backend.capabilities.max_disks
    assert most == {"own-6.1": 5, "linux-image-6.1": 12}
    devices = values(command_line(TCG, "k1", VmResources(), (LAYER,) * 5, (NIC,), reclaim=True).argv, "-device")
    assert len([device for device in devices if "-device" in device]) == 8


def test_a_driver_is_seen_in_the_kernel_or_beside_it(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"\0" * 5000)
    assert not drives(BALLOON_DRIVER, kernel, initrd)
    initrd.write_bytes(b"070701 mods/08-virtio_balloon.ko\0")
    assert drives(BALLOON_DRIVER, kernel, initrd)
    initrd.write_bytes(b"")
    kernel.write_bytes(b"\0virtio_balloon\0")
    assert drives(BALLOON_DRIVER, kernel, initrd)


def test_memory_that_is_no_whole_number_of_mebibytes_is_rounded_up() -> None:
    argv = command_line(TCG, "k1", VmResources(memory_bytes=100 * MIB + 1), (), ()).argv
    assert values(argv, "-m") == ["101M"]


def test_the_sandbox_is_left_to_the_host() -> None:
    assert "-sandbox" not in command_line(TCG, "k1", VmResources(), (), ()).argv


def test_the_vmm_may_use_more_memory_and_cpu_than_its_guest() -> None:
    limits = limits_of(VmResources(cpu_milli=1500, vcpus=2, memory_bytes=1024 * MIB))
    assert limits.memory_bytes == (1024 + 64 + 128 + 32) * MIB
    assert limits.cpu_milli == 1500 + 100
    assert limits.pids == 98
