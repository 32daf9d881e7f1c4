"""The OCI image configuration (image-spec, config.md) → `ImageConfig`. Pure; hostile input.

What is read: how to start the workload, and `rootfs.diff_ids`, the digests of the decompressed layers. Unknown members
are ignored, as the specification asks. Ports other than TCP are left out: a VM's services are TCP.
"""

from __future__ import annotations

import re

from plasmavmc.errors import ImageError
from plasmavmc.images.digests import parse_digest
from plasmavmc.images.documents import as_object, as_text, as_text_map, as_texts, parse_object
from plasmavmc.images.limits import CONFIG_BYTES
from plasmavmc.images.manifest import Platform
from plasmavmc.images.source import ImageConfig

_TEXTS = 4096
"""Entries of a list or a map in the configuration."""
_PORT = re.compile(r"(\d{1,5})(?:/tcp)?")


def parse_config(raw: bytes) -> ImageConfig:
    """What a VM needs of an image configuration.

    Raises:
        ImageError: `image-document`, with the member at fault.
    """
    document = parse_object(raw, "the image configuration", CONFIG_BYTES)
    config = as_object(document.get("config"), "config")
    return ImageConfig(
        entrypoint=_arguments(config.get("Entrypoint"), "config.Entrypoint"),
        command=_arguments(config.get("Cmd"), "config.Cmd"),
        env=_environment(_arguments(config.get("Env"), "config.Env")),
        user=_line(config.get("User"), "config.User"),
        workdir=_workdir(_line(config.get("WorkingDir"), "config.WorkingDir")),
        exposed_ports=_ports(config.get("ExposedPorts")),
        stop_signal=_line(config.get("StopSignal"), "config.StopSignal") or "SIGTERM",
        labels=_bounded_map(config.get("Labels"), "config.Labels"),
        architecture=_line(document.get("architecture"), "architecture"),
        os=_line(document.get("os"), "os"),
    )


def parse_diff_ids(raw: bytes) -> tuple[str, ...]:
    """Digests of the decompressed layers, lowest first. Raises `ImageError` as `parse_config`, and `image-digest`."""
    document = parse_object(raw, "the image configuration", CONFIG_BYTES)
    rootfs = as_object(document.get("rootfs"), "rootfs")
    return tuple(parse_digest(item, "rootfs.diff_ids") for item in as_texts(rootfs.get("diff_ids"), "rootfs.diff_ids"))


def check_platform(config: ImageConfig, wanted: Platform) -> None:
    """Refuse an image for another machine before anything is built. An image that does not say is taken.

    Raises:
        ImageError: `image-platform`.
    """
    found = Platform(config.os or wanted.os, config.architecture or wanted.architecture)
    if found != wanted:
        raise ImageError(
            "image-platform",
            f"the image is built for {found}; this host runs {wanted}",
            resolution=f"build the image for {wanted}",
        )


def _arguments(value: object, what: str) -> tuple[str, ...]:
    texts = as_texts(value, what)
    if len(texts) > _TEXTS or any("\0" in text for text in texts):
        raise ImageError("image-document", f"{what} has more than {_TEXTS} entries, or a NUL character")
    return texts


def _environment(assignments: tuple[str, ...]) -> dict[str, str]:
    """`NAME=value` lines; one without `=` or name sets nothing, as container runtimes do. The last one wins."""
    pairs = (line.partition("=") for line in assignments)
    return {name: value for name, equals, value in pairs if name and equals}


def _line(value: object, what: str) -> str:
    text = as_text(value, what)
    if len(text) > _TEXTS or "\0" in text or "\n" in text:
        raise ImageError("image-document", f"{what} is too long, or has a NUL or newline character")
    return text


def _workdir(text: str) -> str:
    return text if text.startswith("/") else "/" + text


def _ports(value: object) -> tuple[int, ...]:
    ports = as_object(value, "config.ExposedPorts")
    matches = (_PORT.fullmatch(name) for name in ports)
    numbers = {int(match[1]) for match in matches if match}
    return tuple(sorted(number for number in numbers if 0 < number < 65536))[:_TEXTS]


def _bounded_map(value: object, what: str) -> dict[str, str]:
    found = as_text_map(value, what)
    if len(found) > _TEXTS:
        raise ImageError("image-document", f"{what} has more than {_TEXTS} entries")
    return found
