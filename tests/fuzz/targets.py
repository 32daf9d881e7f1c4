"""What reads bytes from somebody who is not trusted, each as a function of bytes.

A target returns where the bytes are taken, and where they are refused with an error that has a name. Anything else that it
raises is a defect of the code it calls. `tests/fuzz/corpus` has bytes for each: messages as they really are, which the
fuzzer starts from, and what once was a defect.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError

from plasmavmc.errors import PlasmaError
from plasmavmc.guest import bzimage, framing, messages
from plasmavmc.host import protocol
from plasmavmc.host.configuration import QEMU, WASM_WORKER
from plasmavmc.host.helper import argv, checks
from plasmavmc.host.helper.roster import Roster
from plasmavmc.host.names import HostNames
from plasmavmc.host.operations import Bridge, RuleSet
from plasmavmc.hypervisor.wasm import control
from plasmavmc.images import auth, config, manifest, merge, pax, reference, wasm
from plasmavmc.images.layers import Layer
from plasmavmc.images.limits import ImageLimits
from plasmavmc.rpc.conversions.images import order_from_pb
from plasmavmc.rpc.conversions.specs import spec_from_pb
from plasmavmc.rpc.conversions.streams import exec_from_pb
from plasmavmc.rpc.v1 import image_pb2, types_pb2, vm_pb2
from plasmavmc.server.policy import parse_policy
from plasmavmc.snapshots import manifest as snapshot
from shellwego.control.certificates import requested_key
from shellwego.core.assignments import NodeReport, Registration, SecretsRequest, VolumeKeyRequest
from shellwego.core.errors import InvalidError
from shellwego.core.joins import JoinRequest
from shellwego.core.routing import EdgeReport
from shellwego.drivers.streams.mux import Link
from shellwego.ports.streams import StreamKind, StreamRequest
from shellwego.wire import codec, links, uplink
from shellwego.wire.links import FrameError

CORPUS = Path(__file__).parent / "corpus"
Target = Callable[[bytes], None]
_NONCE = bytes(range(16))
_NAMES = HostNames.of("swg_fuzz")
_RULES = RuleSet(Bridge(_NAMES.bridge, IPv4Address("10.64.0.1"), IPv4Network("10.64.0.0/20")))
_LIMITS = ImageLimits(entries=2000, unpacked_bytes=1 << 22, metadata_bytes=1 << 20)
_DECODERS = (
    *(messages.decode_hello, messages.decode_ready, messages.decode_failed, messages.decode_exited),
    *(messages.decode_output, messages.decode_exec_output, messages.decode_u32),
)


def framing_(data: bytes) -> None:
    """What a guest sends, in two pieces; also with right checksums, which chance never finds."""
    for start in (b"", framing.MAGIC + _NONCE):
        decoder = framing.FrameDecoder(_NONCE)
        with suppress(PlasmaError):
            half = len(data) // 2
            for piece in (start, data[:half], data[half:]):
                for frame in decoder.feed(piece):
                    _messages(frame)


def _messages(frame: framing.Frame) -> None:
    for decode in _DECODERS:
        with suppress(PlasmaError):
            decode(frame)


def messages_(data: bytes) -> None:
    """One frame of a guest, sealed: two bytes of its type, two of its stream, the payload."""
    if len(data) < 4:
        return
    head = struct.pack("<I", len(data) - 4) + data[:4]
    sealed = head + struct.pack("<I", zlib.crc32(head + data[4:])) + data[4:]
    framing_(sealed)


def image_manifest(data: bytes) -> None:
    for parse in (manifest.parse_manifest, manifest.parse_index):
        with suppress(PlasmaError):
            parse(data)


def image_config(data: bytes) -> None:
    with suppress(PlasmaError):
        parsed = config.parse_config(data)
        config.check_platform(parsed, manifest.host_platform())
        wasm.module_config(parsed)
    with suppress(PlasmaError):
        config.parse_diff_ids(data)


def registry_headers(data: bytes) -> None:
    challenge = auth.parse_challenge(data.decode("latin-1"))
    if challenge is not None:
        with suppress(PlasmaError):
            auth.token_url(challenge, "library/app")
    with suppress(PlasmaError):
        auth.parse_token(data)


def image_reference(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (reference.parse_reference, reference.parse_loaded_name):
        with suppress(PlasmaError):
            parse(text)


def layers(data: bytes) -> None:
    """Two layers of a tar stream or a compressed one, cut at a byte that says where."""
    cut = len(data) * data[0] // 255 if data else 0
    parts = [data[1:cut], data[cut:]]
    whole = [Layer(io.BytesIO(part), len(part), f"sha256:{hashlib.sha256(part).hexdigest()}") for part in parts]
    with suppress(PlasmaError):
        for _ in merge.merge(whole, _LIMITS):
            pass


def pax_records(data: bytes) -> None:
    with suppress(PlasmaError):
        for _ in pax.parse_records(data):
            pass


def wasm_module(data: bytes) -> None:
    with suppress(PlasmaError):
        wasm.check_module(io.BytesIO(data))


def kernel(data: bytes) -> None:
    with suppress(PlasmaError):
        bzimage.payload(data)


def snapshot_manifest(data: bytes) -> None:
    """As it is, and with a right digest."""
    for raw in (data, hashlib.sha256(data).hexdigest().encode() + b"\n" + data):
        with suppress(PlasmaError):
            snapshot.decode(raw)


def policy(data: bytes) -> None:
    with suppress(PlasmaError, UnicodeDecodeError):
        parse_policy(data.decode())


def helper_request(data: bytes) -> None:
    """What the platform says to root; of a VMM's command line also what would be run."""
    with suppress(protocol.ProtocolError, PlasmaError):
        request = protocol.decode_request(data)
        match request:
            case protocol.BridgeEnsure():
                checks.check_bridge(_NAMES, request.bridge)
            case protocol.RulesApply():
                checks.check_rules(_NAMES, request.rules)
                Roster(_NAMES, request.rules)
            case protocol.RulesChange():
                Roster(_NAMES, _RULES).change(request.added, request.removed, request.ports)
            case protocol.RoutesApply():
                checks.check_peers(request.peers)
                checks.check_reach(request.reach)
            case protocol.TapOpen():
                checks.check_tap(_NAMES, request.tap)
            case protocol.VmSpawn():
                checks.check_limits(request.limits)
                names, line = request.fds, request.argv
                argv.check_argv(line, process_name=_NAMES.process("a" * 12), vmms=(QEMU, WASM_WORKER), fds=names)
                argv.final_argv(line, dict.fromkeys((*names, argv.KVM_DESCRIPTOR), 3))


def helper_answer(data: bytes) -> None:
    with suppress(protocol.ProtocolError):
        protocol.decode(data, protocol.Reply)


def worker_word(data: bytes) -> None:
    """What a WebAssembly worker, which its module may have taken over, says to the platform."""
    with suppress(msgspec.MsgspecError):
        control.decode_word(data)


def client_request(data: bytes) -> None:
    """What a client of the gRPC API wants: a VM, a command, an image."""
    with suppress(DecodeError, PlasmaError):
        spec_from_pb(types_pb2.VmSpec.FromString(data))
    with suppress(DecodeError, PlasmaError):
        exec_from_pb(vm_pb2.ExecStart.FromString(data))
    with suppress(DecodeError, PlasmaError):
        order_from_pb(image_pb2.RegisterImageStart.FromString(data))


_CALLS = (
    *(
        Registration,
        NodeReport,
        SecretsRequest,
        VolumeKeyRequest,
        EdgeReport,
        uplink.AssignmentsCall,
        uplink.RoutesCall,
    ),
    *(uplink.RegisterEdgeCall, uplink.RenewCall, JoinRequest),
)


def uplink_call(data: bytes) -> None:
    """What a node or edge calls the control plane with."""
    for kind in _CALLS:
        with suppress(ValueError):
            codec.decode(kind, data)


def certificate_request(data: bytes) -> None:
    """What a host that nobody knows wants signed."""
    with suppress(InvalidError):
        requested_key(data)


def link_frames(data: bytes) -> None:
    """What a node says on its link: messages, each behind two bytes of its length."""
    link = Link(_NoSocket())
    with suppress(FrameError):
        for number in range(1, 4):
            link.open(StreamRequest(kind=StreamKind.LOGS, instance_id=str(number)))
        while len(data) >= 2:
            length = int.from_bytes(data[:2], "big")
            link.take(links.unpack(data[2 : 2 + length]))
            data = data[2 + length :]


class _NoSocket:
    """Nothing is sent, for no link runs."""

    async def send(self, message: bytes) -> None:
        raise ConnectionError

    async def receive(self) -> bytes:
        raise ConnectionError

    async def close(self) -> None:
        """There is nothing to end."""


TARGETS: Mapping[str, Target] = {
    "framing": framing_,
    "messages": messages_,
    "image-manifest": image_manifest,
    "image-config": image_config,
    "registry-headers": registry_headers,
    "image-reference": image_reference,
    "layers": layers,
    "pax-records": pax_records,
    "wasm-module": wasm_module,
    "kernel": kernel,
    "snapshot-manifest": snapshot_manifest,
    "policy": policy,
    "helper-request": helper_request,
    "helper-answer": helper_answer,
    "worker-word": worker_word,
    "client-request": client_request,
    "uplink-call": uplink_call,
    "certificate-request": certificate_request,
    "link-frames": link_frames,
}

GUEST = ("frame", "tlv", "config", "tar", "users", "copy_in")
"""Targets in C, in the guest's init; their corpus has `guest-` in front."""
