"""WebAssembly modules as images: an OCI artifact with one layer that is the module itself.

Theory. What registries hold is an image manifest whose only layer has a media type of WebAssembly and is not a tar
(CNCF TAG Runtime, "Wasm OCI artifact"; older tools write `application/vnd.wasm.content.layer.v1+wasm`). A bare module file
is wrapped into the same form, always with the same bytes for the same module, so that it has one digest.

Only the head of a module is looked at here. Whether it is valid is found out by compiling it, which hostile input must not
do in the platform's process: the worker of its VM does, and a module that is not valid is a workload that cannot start.

Not taken, by name: components (the second binary format, os `wasip2`), and modules in a layer that is a file system.
"""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO

import msgspec

from plasmavmc.errors import ImageError
from plasmavmc.images.documents import as_text, parse_object
from plasmavmc.images.limits import CONFIG_BYTES
from plasmavmc.images.source import BlobRef, ImageConfig, Manifest
from plasmavmc.types import MIB

WASM_LAYER = "application/wasm"
_WASM_LAYERS = frozenset({WASM_LAYER, "application/vnd.wasm.content.layer.v1+wasm"})
_SYSTEMS = frozenset({"", "wasi", "wasip1"})
MODULE_BYTES = 128 * MIB
"""Of a module; the largest in use (language runtimes) have about 30 MiB."""
MODULE_NAME = "module.wasm"
MAGIC = b"\0asm"
_MODULE = MAGIC + b"\x01\0\0\0"
_COMPONENT_LAYER = b"\x01\0"
"""Bytes 6 and 7 of a component; a module has zeros there."""


def is_wasm(manifest: Manifest) -> bool:
    """Whether an image is a WebAssembly module."""
    return any(layer.media_type in _WASM_LAYERS for layer in manifest.layers)


def module_of(manifest: Manifest, config: bytes) -> BlobRef:
    """The layer that is the module.

    Raises:
        ImageError: `image-wasm`, there is more than it; `image-platform`, a component; `image-too-large`.
    """
    document = parse_object(config, "the image configuration", CONFIG_BYTES)
    system = as_text(document.get("os"), "os")
    if system == "wasip2":
        raise _component()
    if system not in _SYSTEMS or as_text(document.get("architecture"), "architecture") not in ("", "wasm"):
        raise ImageError(
            "image-wasm", "its layer is a WebAssembly module, but its configuration names another platform"
        )
    if len(manifest.layers) != 1:
        raise ImageError("image-wasm", f"an image with a WebAssembly module has one layer, not {len(manifest.layers)}")
    layer = manifest.layers[0]
    if layer.size > MODULE_BYTES:
        raise ImageError(
            "image-too-large", f"the module has {layer.size >> 20} MiB; at most {MODULE_BYTES >> 20} are taken"
        )
    return layer


def check_module(file: BinaryIO) -> None:
    """Look at the head of a module.

    Raises:
        ImageError: `image-wasm`, it is none; `image-platform`, it is a component.
    """
    file.seek(0)
    head = file.read(len(_MODULE))
    file.seek(0)
    if head == _MODULE:
        return
    if head[:4] == MAGIC and head[6:8] == _COMPONENT_LAYER:
        raise _component()
    raise ImageError(
        "image-wasm",
        "the file is no WebAssembly module",
        details=f"it begins with {head.hex(' ') or 'nothing'}, a module with {_MODULE.hex(' ')}",
        resolution="build it for the target wasm32-wasip1",
    )


def module_config(config: ImageConfig) -> ImageConfig:
    """A module's configuration, which need not name what there is only one of."""
    return config if config.entrypoint else replace(config, entrypoint=(f"/{MODULE_NAME}",))


def wrapping_config(module_digest: str) -> bytes:
    """The configuration of an image that is this module, for a module that comes as a bare file."""
    return msgspec.json.encode(
        {
            "architecture": "wasm",
            "config": {"Entrypoint": [f"/{MODULE_NAME}"]},
            "os": "wasip1",
            "rootfs": {"diff_ids": [module_digest], "type": "layers"},
        },
        order="sorted",
    )


def _component() -> ImageError:
    return ImageError(
        "image-platform",
        "the image is a WebAssembly component, and only modules are run",
        resolution="build it as a module, for the target wasm32-wasip1",
    )
