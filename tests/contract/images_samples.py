"""Small images for tests, made in memory: tar layers, manifests, and archives as `docker save` and OCI tools write them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace

from plasmavmc.images.source import BlobRef

MTIME = 1_700_000_000


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """One tar entry; `fields` are those of `tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.mtime = MTIME
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, mode: int = 0o755, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def layer(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed layer of these entries, in this order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def empty_files(count: int) -> bytes:
    """A layer of very many empty files in a hundred directories, made faster than `tarfile` can."""
    plain = bytearray(entry("")[0].tobuf(tarfile.USTAR_FORMAT))
    plain[148:156] = b" " * 8
    blocks = []
    for number in range(count):
        block = plain.copy()
        name = b"d%d/f%d" % (number % 100, number)
        block[: len(name)] = name
        block[148:156] = b"%06o\0 " % sum(block)
        blocks.append(bytes(block))
    return b"".join(blocks) + bytes(1024)


@dataclass(frozen=True)
class Sample:
    """An image: its layers as stored, its configuration, its manifest, and all blobs by digest. asyncio writes down what its
    tasks return, which for these hundred megabytes takes seconds."""

    layers: tuple[bytes, ...] = field(repr=False)
    config: bytes
    manifest: bytes
    blobs: Mapping[str, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)


def image(
    *layers: bytes, compress: str = "gzip", config: Mapping[str, object] | None = None, **document: object
) -> Sample:
    """An OCI image over uncompressed layers, stored compressed (`gzip`, `zstd` or `none`)."""
    stored = tuple(pack(data, compress) for data in layers)
    suffix = "" if compress == "none" else f"+{compress}"
    fields = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in layers]},
        **document,
    }
    raw_config = json.dumps(fields).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(raw_config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(data, f"application/vnd.oci.image.layer.v1.tar{suffix}") for data in stored],
    }
    raw = json.dumps(manifest).encode()
    blobs = {digest_of(data): data for data in (*stored, raw_config, raw)}
    return Sample(stored, raw_config, raw, blobs)


def with_layer_blob(sample: Sample, number: int, data: bytes) -> Sample:
    """The same image, whose source answers other bytes for one layer."""
    blobs = {**sample.blobs, digest_of(sample.layers[number]): data}
    return replace(sample, blobs=blobs)


def pack(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, mtime=0)
    if how == "zstd":
        import zstandard  # noqa: PLC0415

        return zstandard.compress(data)
    return data


def descriptor(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def hello() -> Sample:
    """The usual sample: two layers, an entrypoint, a port."""
    below = layer(directory("bin/"), entry("bin/hello", b"#!/bin/sh\necho one\n", mode=0o755), entry("etc/old", b"old"))
    above = layer(entry("bin/hello", b"#!/bin/sh\necho two\n", mode=0o755), entry("etc/.wh.old"))
    config = {"Entrypoint": ["/bin/hello"], "Cmd": ["x"], "Env": ["A=b"], "ExposedPorts": {"8080/tcp": {}}}
    return image(below, above, config=config)


def docker_save(sample_layers: Iterable[bytes], names: Iterable[str] = ("hello:v1",), **document: object) -> bytes:
    """A tar as `docker save` before version 25 writes it, over uncompressed layers."""
    layers = tuple(sample_layers)
    config = image(*layers, **document).config
    config_name = digest_of(config).removeprefix("sha256:") + ".json"
    paths = [f"{number}/layer.tar" for number in range(len(layers))]
    index = [{"Config": config_name, "RepoTags": list(names), "Layers": paths}]
    files = [entry(path, data) for path, data in zip(paths, layers, strict=True)]
    return layer(entry(config_name, config), *files, entry("manifest.json", json.dumps(index).encode()))


def oci_layout(sample: Sample, name: str = "hello:v1") -> bytes:
    """An OCI image layout as a tar."""
    index = {
        "schemaVersion": 2,
        "manifests": [
            descriptor(
                sample.manifest,
                "application/vnd.oci.image.manifest.v1+json",
                annotations={"org.opencontainers.image.ref.name": name},
            )
        ],
    }
    blobs = [entry(f"blobs/{digest.replace(':', '/')}", data) for digest, data in sample.blobs.items()]
    layout = entry("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    return layer(layout, entry("index.json", json.dumps(index).encode()), *blobs)


async def chunked(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


class MemorySource:
    """A `BlobSource` over blobs in memory, which counts what it was asked for."""

    def __init__(self, *samples: Sample) -> None:
        self.blobs = {digest: data for sample in samples for digest, data in sample.blobs.items()}
        self.asked: list[tuple[str, int]] = []

    async def manifest(self, digest: str) -> bytes:
        return self.blobs[digest]

    async def blob(self, ref: BlobRef, offset: int = 0) -> AsyncIterator[bytes]:
        self.asked.append((ref.digest, offset))
        async for chunk in chunked(self.blobs[ref.digest][offset:]):
            yield chunk
