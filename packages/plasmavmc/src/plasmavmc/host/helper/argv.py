"""Which command lines of a VMM the helper will run. Pure.

Theory. The VMM runs as a uid that owns nothing, so a bad argument cannot harm root; but it could open what is readable by
all, start a listener on the network, write a log somewhere, or carry a second VM's name. So the command line is a list of
known options, each with a value of a known form, and everything that is not known is refused: no `-monitor`, `-gdb`,
`-plugin`, `-fsdev`, no chardev on a file, pipe or TCP port, no script, no path but those below. Descriptors are named by
token (`@name@`) and only in places where QEMU takes a number. `-name` must be the VM's own, and the sandbox is added here,
where no caller can leave it out.

A new option of the hypervisor's backend is added to `_OPTIONS` (with a value) or `_FLAGS`; a device to `_DEVICES`.
Source: qemu-system-x86_64(1), QEMU 7.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from plasmavmc.errors import HostError
from plasmavmc.host.configuration import WASM_WORKER
from plasmavmc.host.helper.checks import refusal

SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
MAX_ARGUMENTS = 512
MAX_ARGUMENT = 4096
CONTROL = "-control"
"""A WebAssembly worker's only option beside its name: the socket over which it is told what to run."""
KVM_DESCRIPTOR = "kvm"
"""A token that the caller gives no descriptor for: the helper opens /dev/kvm, which may be closed to all but root."""

_TOKEN = re.compile(r"@([a-z][a-z0-9]{0,15})@")
_T = r"@[a-z][a-z0-9]{0,15}@"
_ID = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
_SWITCH = r"(on|off)"
_FDSET = r"/dev/fdset/[0-9]{1,4}"
_SIZE = r"[0-9]{1,9}[KMG]?"
_LIMIT = r'"(bps|iops)-total":[0-9]{1,15}'
_TOPOLOGY = r"cpus|maxcpus|sockets|dies|cores|threads"

_MACHINE_KEYS = (
    rf"(acpi|pic|pit|rtc|isa-serial|x-option-roms|auto-kernel-cmdline|usb|graphics|dump-guest-core|mem-merge|pcie|ioapic2"
    rf"|vmport|hpet)={_SWITCH}|memory-backend={_ID}|kernel-irqchip=(on|off|split)"
)
_DEVICE_KEYS = (
    rf"(drive|chardev|netdev|id|bus|rng|name|iothread|memdev)={_ID}|mac=[0-9a-f]{{2}}(:[0-9a-f]{{2}}){{5}}"
    r"|(nr|max_ports|num-queues|queue-size|rx_queue_size|tx_queue_size|bootindex|vectors|host_mtu|addr|slot|chassis"
    r"|logical_block_size|physical_block_size|max-bytes|period|nvectors)=[0-9]{1,9}"
    rf"|(share-rw|write-cache|config-wce|discard|mq|packed|event_idx|indirect_desc|csum|gso|disable-legacy|disable-modern"
    rf"|deflate-on-oom|free-page-reporting|iommu_platform|ctrl_vq|guest_csum|guest_tso4|guest_tso6|guest_ecn|guest_ufo"
    rf"|host_tso4|host_tso6|host_ecn|host_ufo|mrg_rxbuf)={_SWITCH}|serial=[A-Za-z0-9_-]{{1,20}}"
    r"|werror=(report|stop|enospc|ignore)|rerror=(report|stop|ignore)"
)
_BLOCK_KEYS = re.compile(
    rf"(driver|file\.driver)=(raw|file|throttle|luks)|key-secret={_ID}|throttle-group={_ID}|(node-name|file\.node-name|file)={_ID}|(file\.)?filename={_FDSET}"
    rf"|(read-only|auto-read-only|file\.read-only|file\.auto-read-only|cache\.direct|cache\.no-flush|file\.cache\.direct"
    rf"|file\.cache\.no-flush)={_SWITCH}|(file\.)?locking=(on|off|auto)|(file\.)?discard=(ignore|unmap)"
    r"|(file\.)?aio=(threads|native|io_uring)|detect-zeroes=(off|on|unmap)"
)
_DRIVE_KEYS = re.compile(
    rf"if=none|id={_ID}|file={_FDSET}|format=raw|(readonly|read-only)={_SWITCH}|(file\.)?locking=(on|off|auto)"
    r"|cache=(none|writeback|unsafe|directsync|writethrough)|aio=(threads|native|io_uring)|discard=(ignore|unmap)"
    r"|werror=(report|stop|enospc|ignore)|rerror=(report|stop|ignore)"
)
_DEVICES = (
    r"virtio-(blk|net|serial|rng|balloon|mem)-(device|pci)|virtserialport|virtconsole|isa-serial|pvpanic"
    r"|pcie-root-port"
)

Check = Callable[[str], bool]


def _form(pattern: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: compiled.fullmatch(value) is not None


def _list(first: str, keys: str) -> Check:
    """A first word and then `key=value` pairs of known form."""
    return _form(rf"({first})(,({keys}))*")


def _pairs(keys: re.Pattern[str]) -> Check:
    return lambda value: all(keys.fullmatch(pair) is not None for pair in value.split(","))


def _is_blockdev(value: str) -> bool:
    """`key=value` pairs, or the same as a JSON object."""
    if not value.startswith("{"):
        return _pairs(_BLOCK_KEYS)(value)
    try:
        pairs = _flattened(json.loads(value), "")
    except (ValueError, RecursionError):
        return False
    return all(_BLOCK_KEYS.fullmatch(pair) is not None for pair in pairs)


def _flattened(value: Any, prefix: str) -> list[str]:
    if isinstance(value, dict):
        return [
            pair for key, inner in value.items() for pair in _flattened(inner, f"{prefix}.{key}" if prefix else key)
        ]
    if isinstance(value, bool):
        return [f"{prefix}={'on' if value else 'off'}"]
    if isinstance(value, str):
        return [f"{prefix}={value}"]
    raise ValueError(f"{type(value)} in a -blockdev")


_OPTIONS: Mapping[str, Check] = {
    "-M": _list(r"microvm|q35|pc|none", _MACHINE_KEYS),
    "-accel": _form(rf"tcg(,(thread=(single|multi)|tb-size=[0-9]{{1,5}}))*|kvm(,device={_FDSET})?"),
    "-cpu": _form(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(,([+-][a-z0-9_.-]{1,40}|[a-z0-9_.-]{1,40}=[a-z0-9]{1,40})){0,32}"),
    "-smp": _form(rf"(({_TOPOLOGY})=)?[0-9]{{1,3}}(,({_TOPOLOGY})=[0-9]{{1,3}})*"),
    "-m": _form(rf"(size=)?{_SIZE}(,(slots=[0-9]{{1,3}}|maxmem={_SIZE}))*"),
    "-display": _form(r"none"),
    "-vga": _form(r"none"),
    "-parallel": _form(r"none"),
    "-serial": _form(rf"none|null|chardev:{_ID}"),
    "-kernel": _form(rf"/dev/fd/{_T}|{_FDSET}"),
    "-initrd": _form(rf"/dev/fd/{_T}|{_FDSET}"),
    "-append": _form(r"[\x20-\x7e]{0,2048}"),
    "-bios": _form(r"(bios-microvm|bios|bios-256k|qboot)\.(bin|rom)"),
    "-L": _form(r"/usr/share/(qemu|seabios)"),
    "-rtc": _form(r"base=utc(,clock=(host|vm|rt))?(,driftfix=(none|slew))?"),
    "-global": _form(rf"virtio-mmio\.force-legacy={_SWITCH}|kvm-pit\.lost_tick_policy=(delay|discard)"),
    "-uuid": _form(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "-msg": _form(rf"timestamp={_SWITCH}"),
    "-incoming": _form(r"defer"),
    "-object": _form(
        rf"memory-backend-(ram|memfd),id={_ID},size={_SIZE}(,(share|merge|dump|prealloc)={_SWITCH})*"
        rf"|memory-backend-file,id={_ID},size={_SIZE},mem-path=/dev/fd/{_T}(,(share|merge|dump|prealloc)={_SWITCH})*"
        rf'|\{{"qom-type":"throttle-group","id":"{_ID}","limits":\{{{_LIMIT}(,{_LIMIT})?\}}\}}'
        rf"|secret,id={_ID},format=raw,file=/dev/fd/{_T}"
        rf"|rng-builtin,id={_ID}|rng-random,id={_ID},filename=/dev/urandom|iothread,id={_ID}"
    ),
    "-device": _list(_DEVICES, _DEVICE_KEYS),
    "-netdev": _form(rf"tap,id={_ID},fd={_T}(,vhost=off)?"),
    "-chardev": _form(
        rf"socket,id={_ID},fd={_T},server=on,wait=off|null,id={_ID}|ringbuf,id={_ID},size=[0-9]{{1,8}}|stdio,id={_ID},signal=off"
    ),
    "-mon": _form(rf"chardev={_ID},mode=control"),
    "-add-fd": _form(rf"fd={_T},set=[0-9]{{1,4}}"),
    CONTROL: _form(_T),
    "-blockdev": _is_blockdev,
    "-drive": _pairs(_DRIVE_KEYS),
}
_ALIASES = {"-machine": "-M"}
_FLAGS = frozenset({"-nodefaults", "-no-user-config", "-no-reboot", "-no-shutdown", "-S", "-only-migratable"})
_WITH_DESCRIPTORS = frozenset({CONTROL, "-kernel", "-initrd", "-netdev", "-chardev", "-add-fd", "-object"})


def check_argv(argv: Sequence[str], *, process_name: str, vmms: Collection[str], fds: Collection[str]) -> None:
    """Accept a VMM's command line.

    `process_name` is the only `-name` allowed and must occur; `fds` are the names of the descriptors given. Each must be
    used and each token must be given, so that no VMM gets a descriptor that it has no use for.

    Raises:
        HostError: `helper-refused`, naming the argument.
    """
    if not argv or argv[0] not in vmms:
        raise refusal("a VMM", f"{(argv[0] if argv else '')!r:.80} is not on the list given at its start")
    if len(argv) > MAX_ARGUMENTS or any(len(argument) > MAX_ARGUMENT for argument in argv):
        raise refusal("a command line", "it is too long")
    pairs = _paired(argv[1:])
    names = [value for option, value in pairs if option == "-name"]
    if names != [process_name]:
        raise refusal("a command line", f"its -name must be {process_name}")
    if argv[0] == WASM_WORKER and [option for option, _ in pairs] != ["-name", CONTROL]:
        raise refusal("a command line", f"a {WASM_WORKER} has -name and {CONTROL}, and nothing else")
    for option, value in pairs:
        _check_option(option, value)
    if argv[0] != WASM_WORKER and any(option == CONTROL for option, _ in pairs):
        raise _bad(CONTROL, f"is an option of a {WASM_WORKER}")
    _check_tokens(pairs, fds)


def _paired(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Options with their values; a flag has an empty one."""
    pairs = []
    rest = iter(arguments)
    for argument in rest:
        option = _ALIASES.get(argument, argument)
        if option in _FLAGS:
            pairs.append((option, ""))
        elif option in _OPTIONS or option == "-name":
            value = next(rest, None)
            if value is None:
                raise _bad(option, "has no value")
            pairs.append((option, value))
        else:
            raise _bad(option, "is not an option that a VMM may get")
    return pairs


def _check_option(option: str, value: str) -> None:
    check = _OPTIONS.get(option)
    if check is not None and not check(value):
        raise _bad(option, f"{value!r:.120} is not of a form that it may have")


def _check_tokens(pairs: Sequence[tuple[str, str]], fds: Collection[str]) -> None:
    used = [name for option, value in pairs if option in _WITH_DESCRIPTORS for name in _TOKEN.findall(value)]
    if len(used) != len(set(used)) or set(used) - {KVM_DESCRIPTOR} != set(fds) - {KVM_DESCRIPTOR}:
        raise refusal("descriptors", f"given {sorted(fds)}, named {sorted(used)}: each must be there once")
    if KVM_DESCRIPTOR in fds:
        raise refusal("descriptors", f"{KVM_DESCRIPTOR} is opened by the helper")


def wants_kvm_descriptor(argv: Sequence[str]) -> bool:
    """Whether an accepted command line names the descriptor of /dev/kvm, which the helper opens."""
    return any(KVM_DESCRIPTOR in _TOKEN.findall(value) for option, value in _paired(argv[1:]) if option == "-add-fd")


def wants_kvm(argv: Sequence[str]) -> bool:
    """Whether an accepted command line asks for KVM."""
    return any(option == "-accel" and value.startswith("kvm") for option, value in _paired(argv[1:]))


def final_argv(argv: Sequence[str], numbers: Mapping[str, int]) -> list[str]:
    """An accepted command line with tokens replaced by numbers and the sandbox added."""
    result = [argv[0]]
    for option, value in _paired(argv[1:]):
        result.append(option)
        if option in _WITH_DESCRIPTORS:
            result.append(_TOKEN.sub(lambda match: str(numbers[match[1]]), value))
        elif option not in _FLAGS:
            result.append(value)
    return [*result, *SANDBOX]


def _bad(option: str, why: str) -> HostError:
    return refusal("a command line", f"{option!r:.40} {why}")
