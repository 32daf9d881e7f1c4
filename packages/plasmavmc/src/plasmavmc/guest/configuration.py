"""What a guest is told, from what was asked and what the image says. Pure."""

from __future__ import annotations

from plasmavmc.errors import InvalidSpecError
from plasmavmc.guest.api import GuestConfig, GuestNetwork, GuestVolume
from plasmavmc.images.source import ImageConfig
from plasmavmc.types import OWN_DISKS, Lease, TerminalSize, VmSpec


def guest_argv(spec: VmSpec, image: ImageConfig) -> tuple[str, ...]:
    """The workload's argument list: entrypoint, then command (OCI image-spec, config.md). A given entrypoint drops the
    image's command, as `docker run --entrypoint` does.

    Raises:
        InvalidSpecError: neither the image nor the spec says what to run.
    """
    entrypoint = image.entrypoint if spec.entrypoint is None else spec.entrypoint
    default = image.command if spec.entrypoint is None else ()
    command = default if spec.command is None else spec.command
    argv = entrypoint + command
    if not argv:
        raise InvalidSpecError(
            "command",
            "the image has neither entrypoint nor command, and none was given",
            resolution="Give a command, or set CMD or ENTRYPOINT in the image.",
        )
    return argv


def guest_volumes(spec: VmSpec) -> tuple[GuestVolume, ...]:
    """The VM's volumes as its guest finds them. One that is mounted below another comes after it."""
    found = (
        GuestVolume(disk, volume.destination, volume.read_only) for disk, volume in enumerate(spec.volumes, OWN_DISKS)
    )
    return tuple(sorted(found, key=lambda volume: volume.destination))


def guest_config(
    spec: VmSpec,
    image: ImageConfig,
    *,
    lease: Lease | None,
    nameservers: tuple[str, ...],
    entropy: bytes,
    unix_time_ns: int,
    terminal_size: TerminalSize = TerminalSize(),  # noqa: B008 - a frozen value
) -> GuestConfig:
    """All that the guest's init needs. What the spec leaves open comes from the image."""
    network = None if lease is None else GuestNetwork.of(lease, nameservers)
    return GuestConfig(
        argv=guest_argv(spec, image),
        env={**image.env, **spec.env},
        user=image.user if spec.user is None else spec.user,
        workdir=(image.workdir if spec.workdir is None else spec.workdir) or "/",
        hostname=spec.hostname or spec.name,
        network=network,
        files=spec.files,
        entropy=entropy,
        unix_time_ns=unix_time_ns,
        stdio=spec.stdio,
        terminal_size=terminal_size,
        volumes=guest_volumes(spec),
    )
