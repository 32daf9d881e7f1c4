"""Real messages for each target, which the fuzzer changes. `python -m tests.fuzz.seeds` writes them into the corpus."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from plasmavmc.guest.api import GuestConfig
from plasmavmc.guest.framing import FrameType, encode, put_field
from plasmavmc.guest.messages import Tag, encode_config, encode_exec
from plasmavmc.host import protocol
from plasmavmc.hypervisor.wasm.control import Compiled, Ready
from plasmavmc.images import pax
from plasmavmc.rpc.conversions.specs import spec_to_pb
from plasmavmc.types import ExecSpec, FileSpec, NetworkSpec, Scope, VmSpec
from shellwego.control.certificates import certificate_request, new_key
from shellwego.core.assignments import Registration
from shellwego.wire import codec, links, uplink
from shellwego.wire.links import Frame, FrameKind
from tests.contract.images_samples import directory, entry, hard_link, image, layer, symlink
from tests.contract.uplink_contract import EDGE_REPORT, FACTS, REPORT, SECRETS_REQUEST
from tests.engine.test_host_protocol import REQUESTS
from tests.fuzz.targets import CORPUS

_SAMPLE = image(
    layer(entry("app", b"x")), config={"Entrypoint": ["/app"], "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}}
)
_LAYER = layer(directory("d"), entry("d/f", b"content"), symlink("d/s", "f"), hard_link("d/h", "d/f"), entry("é" * 60))
_FRAMES = (
    encode(FrameType.HELLO, b"\x01\0\0\0" + bytes(8)),
    encode(FrameType.READY, b"\x07\0\0\0"),
    encode(FrameType.OUTPUT, bytes(8) + b"\x01line\n"),
    encode(FrameType.EXITED, b"\x01\0\0\0\0"),
    encode(FrameType.FAILED, put_field(Tag.CODE, b"bad-file") + put_field(Tag.MESSAGE, b"no room")),
    encode(FrameType.EXEC_OUTPUT, b"\x02text", stream=3),
    encode(FrameType.EXEC_EXIT, bytes(4), stream=3),
    encode(FrameType.CREDIT, b"\0\x01\0\0", stream=3),
)
_SPEC = VmSpec(
    id="vm_a",
    scope=Scope("org", "prj"),
    name="a",
    image="app:v1",
    command=("serve",),
    env={"K": "v"},
    files=(FileSpec("/etc/x", b"y"),),
    networks=(NetworkSpec("", "net_1"),),
)
_BZIMAGE = bytes(0x1F1) + b"\x01" + bytes(16) + b"HdrS" + bytes(66) + (512).to_bytes(4, "little") + bytes(2048)
_POLICY = b'[[principals]]\nname = "ci"\ntoken_sha256 = "%s"\ngrants = [{ role = "viewer", org = "o" }]\n' % (b"0" * 64)
_CONFIG = encode_config(
    GuestConfig(argv=("serve",), env={"K": "v"}, user="web:logs", files=(FileSpec("/etc/x", b"y"),), entropy=bytes(32))
)
_TREE = layer(directory("x"), entry("x/f", b"content"), symlink("x/s", "f"), entry("x/" + "p" * 200, b"long"))
_OUTSIDE = layer(directory("x"), symlink("x/up", "../.."), entry("x/up/escaped", b"1"), entry("x/../escaped", b"2"))
_MANIFEST = (
    b'{"version":1,"vm_id":"vm_a","image":"sha256:0","memory_bytes":1,"traits":{"cpu":"x"},"pieces":[[0,1,"0"]]}'
)
_LINK_FRAMES = (
    Frame(FrameKind.DATA, 1, b"some bytes"),
    Frame(FrameKind.CREDIT, 1, links.credit(links.INITIAL_CREDIT)),
    Frame(FrameKind.EOF, 1),
    Frame(FrameKind.END, 1),
    Frame(FrameKind.RESET, 2, "wegen Überfüllung".encode()),
    Frame(FrameKind.BEAT),
)


def _behind_its_length(frame: Frame) -> bytes:
    message = links.pack(frame)
    return len(message).to_bytes(2, "big") + message


SEEDS: Mapping[str, Iterable[bytes]] = {
    "framing": (b"".join(_FRAMES), *_FRAMES),
    "messages": tuple(frame[4:8] + frame[12:] for frame in _FRAMES),
    "image-manifest": (_SAMPLE.manifest, b'{"manifests":[{"digest":"sha256:%s","size":1}]}' % (b"0" * 64)),
    "image-config": (_SAMPLE.config,),
    "registry-headers": (b'Bearer realm="https://a.example/token",service="a",scope="b"', b"Basic", b'{"token":"t"}'),
    "image-reference": (b"localhost:5000/a/b:v1@sha256:" + b"0" * 64, b"app:v1"),
    "layers": (b"\x80" + _LAYER, b"\xff" + gzip.compress(_LAYER, mtime=0), b"\0" + layer(entry("d/.wh.f"))),
    "pax-records": (pax.format_records([(b"path", b"a/b"), (b"size", b"12"), (b"SCHILY.xattr.user.a", b"b")]),),
    "wasm-module": (b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"),
    "kernel": (_BZIMAGE,),
    "snapshot-manifest": (_MANIFEST,),
    "policy": (_POLICY,),
    "helper-request": tuple(map(protocol.encode, REQUESTS)),
    "helper-answer": tuple(
        map(
            protocol.encode,
            (
                protocol.Reply(protocol.Failure("code", "brief")),
                protocol.Reply(value=msgspec.Raw(protocol.encode(7))),
            ),
        )
    ),
    "worker-word": tuple(map(msgspec.msgpack.encode, (Ready(), Compiled()))),
    "guest-frame": (
        encode(FrameType.CONFIG_END) + encode(FrameType.STOP, bytes(8)),
        encode(FrameType.STDIN, b"input", stream=2),
    ),
    "guest-tlv": (_CONFIG,),
    "guest-config": (_CONFIG, encode_exec(ExecSpec(("a", "b"), user="web", workdir="/"))),
    "guest-tar": (_TREE,),
    "guest-copy_in": (_TREE, _OUTSIDE),
    "guest-users": (b"web:logs\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\n\nlogs:x:111:web\n",),
    "client-request": (spec_to_pb(_SPEC, secrets=True).SerializeToString(),),
    "uplink-call": tuple(
        map(
            codec.encode,
            (
                Registration(name="one", facts=FACTS, known_node_id="node_1"),
                *(REPORT, SECRETS_REQUEST, EDGE_REPORT, uplink.RoutesCall(edge_id="edg_1", known_version=3)),
            ),
        )
    ),
    "certificate-request": (certificate_request(new_key()),),
    "link-frames": (
        b"".join(map(_behind_its_length, _LINK_FRAMES)),
        *map(_behind_its_length, _LINK_FRAMES),
    ),
}


def write(target: str, data: bytes, corpus: Path = CORPUS) -> Path:
    """Keep bytes in the corpus, named by what they are."""
    path = corpus / target / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    for name, seeds in SEEDS.items():
        for seed in seeds:
            write(name, seed)
