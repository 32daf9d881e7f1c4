"""Images, and the order to register one."""

from __future__ import annotations

from plasmavmc.backends import GuestKind
from plasmavmc.errors import InvalidSpecError
from plasmavmc.rpc.api import Image, ImageOrder, ImageProgress, RegistryLogin, Upload
from plasmavmc.rpc.conversions.values import (
    NO_SCOPE,
    enum_from_pb,
    enum_to_pb,
    scope_from_pb,
    scope_to_pb,
    text,
    time_from_pb,
    time_to_pb,
)
from plasmavmc.rpc.v1 import image_pb2

MAX_REFERENCE = 512
_UNKNOWN = image_pb2.IMAGE_KIND_UNSPECIFIED
_KIND_NAMES = {int(value): name for name, value in image_pb2.ImageKind.items()}

UPLOAD_WANTED = ("plasmavmc-upload", "wanted")
"""In the header of a call that goes on to read its upload. Who waits for it sends nothing to one that is refused, whose
reason is easily missed while sending."""


def image_to_pb(image: Image) -> image_pb2.Image:
    return image_pb2.Image(
        digest=image.digest,
        names=image.names,
        scope=scope_to_pb(image.scope),
        kind=_UNKNOWN if image.kind is None else enum_to_pb(image.kind, "IMAGE_KIND", image_pb2.ImageKind.Value),
        size_bytes=image.size_bytes,
        created=time_to_pb(image.created),
        entrypoint=image.entrypoint,
        command=image.command,
        user=image.user,
        workdir=image.workdir,
        exposed_ports=image.exposed_ports,
        labels=image.labels,
        disk_bytes=image.disk_bytes,
        used=time_to_pb(image.used_at),
    )


def image_from_pb(message: image_pb2.Image) -> Image:
    return Image(
        scope=scope_from_pb("image.scope", message.scope),
        digest=message.digest,
        names=tuple(message.names),
        kind=enum_from_pb("image.kind", GuestKind, _KIND_NAMES, message.kind, "IMAGE_KIND") if message.kind else None,
        size_bytes=message.size_bytes,
        created=time_from_pb(message.created),
        entrypoint=tuple(message.entrypoint),
        command=tuple(message.command),
        user=message.user,
        workdir=message.workdir,
        exposed_ports=tuple(message.exposed_ports),
        labels=dict(message.labels),
        disk_bytes=message.disk_bytes,
        used_at=time_from_pb(message.used),
    )


def order_to_pb(order: ImageOrder, request_id: str) -> image_pb2.RegisterImageStart:
    message = image_pb2.RegisterImageStart(request_id=request_id, name=order.name)
    if order.scope != NO_SCOPE:
        message.scope.CopyFrom(scope_to_pb(order.scope))
    match order.source:
        case Upload.TAR:
            message.tar_upload = True
        case Upload.WASM:
            message.wasm_upload = True
        case reference:
            message.reference = reference
    if order.login is not None:
        message.credentials.username, message.credentials.password = order.login.username, order.login.password
    return message


def order_from_pb(message: image_pb2.RegisterImageStart) -> ImageOrder:
    """What is to be registered. Its scope may be empty.

    Raises:
        InvalidSpecError: with the path of the field at fault.
    """
    login = None
    if message.HasField("credentials"):
        name = text("start.credentials.username", message.credentials.username, 256)
        login = RegistryLogin(name, text("start.credentials.password", message.credentials.password))
    return ImageOrder(
        scope=scope_from_pb("start.scope", message.scope),
        source=_source(message),
        name=text("start.name", message.name, MAX_REFERENCE),
        login=login,
    )


def _source(message: image_pb2.RegisterImageStart) -> str | Upload:
    match message.WhichOneof("source"):
        case "reference" if message.reference:
            return text("start.reference", message.reference, MAX_REFERENCE)
        case "tar_upload" if message.tar_upload:
            return Upload.TAR
        case "wasm_upload" if message.wasm_upload:
            return Upload.WASM
        case _:
            raise InvalidSpecError("start", "say what comes: reference, tar_upload or wasm_upload")


def progress_to_pb(progress: ImageProgress) -> image_pb2.ImageProgress:
    return image_pb2.ImageProgress(
        stage=progress.stage, done_bytes=progress.done_bytes, total_bytes=progress.total_bytes
    )


def progress_from_pb(message: image_pb2.ImageProgress) -> ImageProgress:
    return ImageProgress(message.stage, message.done_bytes, message.total_bytes)
