"""Builds the sample's image as an OCI-layout tar, without any registry: a base from the archive, then the app.

    build.py --base base.tar --version v1 --output hello-v1.tar [--env NAME=VALUE …]

The same input gives the same digest (times are fixed), so that a second run has nothing to push.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from pathlib import Path

APP = Path(__file__).with_name("app.py")
EPOCH = 1_700_000_000
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Layout:
    """Collects blobs of an OCI image layout (image-spec, image-layout.md) and writes them as a tar."""

    def __init__(self, output: Path) -> None:
        self._tar = tarfile.open(output, "w")  # noqa: SIM115 - closed by `finish`

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(data), EPOCH
        self._tar.addfile(info, io.BytesIO(data))

    def blob(self, data: bytes, media_type: str) -> dict[str, object]:
        """Store a blob; returns its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        self._member(f"blobs/sha256/{digest}", data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def finish(self, manifest: dict[str, object], name: str) -> None:
        """Write the index that names the one image."""
        self._member("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        index = {
            "schemaVersion": 2,
            "manifests": [{**manifest, "annotations": {"org.opencontainers.image.ref.name": name}}],
        }
        self._member("index.json", json.dumps(index).encode())
        self._tar.close()


def compressed(tar: Path) -> bytes:
    """gzip without a time stamp."""
    with tempfile.TemporaryFile() as out:
        with tar.open("rb") as source, gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        out.seek(0)
        return out.read()


def app_layer(directory: Path) -> Path:
    """The layer with the application alone."""
    path = directory / "app.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("app/app.py")
        data = APP.read_bytes()
        info.size, info.mtime, info.mode = len(data), EPOCH, 0o644
        tar.addfile(info, io.BytesIO(data))
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def build(base: Path, version: str, environment: list[str], output: Path) -> None:
    """Write the image `hello:<version>`."""
    with tempfile.TemporaryDirectory() as scratch:
        layers = [base, app_layer(Path(scratch))]
        layout = Layout(output)
        descriptors = [layout.blob(compressed(layer), LAYER) for layer in layers]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": ["/usr/bin/python3", "/app/app.py"],
                "Env": ["PATH=/usr/bin:/bin", f"HELLO_VERSION={version}", *environment],
                "User": "nobody",
                "WorkingDir": "/app",
                "ExposedPorts": {"8080/tcp": {}},
                "StopSignal": "SIGTERM",
            },
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
        }
        _finish(layout, config, descriptors, f"hello:{version}")


def scratch_image(binary: Path, output: Path, name: str) -> Path:
    """Write an image that holds one static program and nothing else."""
    layout = Layout(output)
    with tempfile.TemporaryDirectory() as scratch:
        layer = Path(scratch) / "layer.tar"
        with tarfile.open(layer, "w") as tar:
            info = tarfile.TarInfo(binary.name)
            data = binary.read_bytes()
            info.size, info.mtime, info.mode = len(data), EPOCH, 0o755
            tar.addfile(info, io.BytesIO(data))
        descriptors = [layout.blob(compressed(layer), LAYER)]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [f"/{binary.name}"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer)]},
        }
    _finish(layout, config, descriptors, name)
    return output


def _finish(layout: Layout, config: dict[str, object], layers: list[dict[str, object]], name: str) -> None:
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": layout.blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    layout.finish(layout.blob(json.dumps(manifest).encode(), str(manifest["mediaType"])), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--env", action="append", default=[])
    arguments = parser.parse_args()
    build(arguments.base, arguments.version, arguments.env, arguments.output)


if __name__ == "__main__":
    main()
