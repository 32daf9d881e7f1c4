"""`swg images`: list, pull, load, remove."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, BinaryIO

import click

from shellwego.cli.failure import FAILED, NOT_FOUND, TIMED_OUT, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import age, show, show_removed, size
from shellwego.cli.progress import StageProgress
from shellwego.cli.session import Session, about_no_app, shared
from shellwego.client.pages import MOST, every

if TYPE_CHECKING:
    from shellwego.client.generated import ImageView

_PULL_S = 1800.0
_FIRST_PAUSE_S = 0.3
_LONGEST_PAUSE_S = 2.0
"""A small image is here at once; for a large one a token need not spend all the requests that it may make."""


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def images() -> None:
    """List, pull, load and remove images."""


def _show(session: Session, found: list[ImageView]) -> None:
    import msgspec  # noqa: PLC0415

    rows = [
        {
            "reference": image.reference,
            "state": image.state,
            "digest": image.digest[7:19],
            "size": size(image.size_bytes) if image.size_bytes else None,
            "source": "loaded" if image.loaded else "registry",
            "age": age(image.created_at),
            "id": image.id,
            "reason": image.reason,
        }
        for image in found
    ]
    show(session, msgspec.to_builtins(found), rows, name="reference", empty="no images yet: swg images load NAME FILE")


@images.command("ls")
@shared
@about_no_app
def list_images(session: Session) -> None:
    """List the images that the project knows."""
    _show(session, _all(session))


@images.command("load")
@click.argument("name")
@click.argument("file", type=click.File("rb"))
@shared
@about_no_app
def load_image(session: Session, name: str, file: BinaryIO) -> None:
    """Load the image of a tar (`docker save` or an OCI layout; - for stdin), or a WebAssembly module, under a name such as
    shop:v1.
    """
    from shellwego.client.uploads import load_image as load  # noqa: PLC0415

    progress = StageProgress(session)
    loaded = load(
        session.client,
        file,
        name=name,
        project=session.project,
        progress=lambda count: progress.update("uploading", size(count)),
    )
    progress.done(f"{name} is loaded", good=True)
    _show(session, loaded.data)


@images.command("pull")
@click.argument("reference")
@shared
@about_no_app
def pull_image(session: Session, reference: str) -> None:
    """Fetch an image from its registry, so that a deploy need not wait for it."""
    from shellwego.client.generated import ImageCreate  # noqa: PLC0415

    progress = StageProgress(session)
    image = session.client.register_image(ImageCreate(reference=reference), project=session.project)
    deadline, pause = time.monotonic() + _PULL_S, _FIRST_PAUSE_S
    while image.state not in ("ready", "failed"):
        progress.update(image.state, image.reference)
        if time.monotonic() > deadline:
            raise Failure(f"{image.reference} is still {image.state}", code=TIMED_OUT)
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        image = session.client.get_image(image.id)
    if image.state == "failed":
        raise Failure(f"{image.reference} could not be fetched: {image.reason}", code=FAILED)
    progress.done(f"{image.reference} is here", good=True)
    _show(session, [image])


@images.command("rm")
@click.argument("image")
@shared
@about_no_app
def remove_image(session: Session, image: str) -> None:
    """Remove an image, by its id or name; refused while an app needs it."""
    ids = [image] if image.startswith("img_") else [found.id for found in _by_name(session, image)]
    if not ids:
        raise Failure(f"the project has no image “{image}”", code=NOT_FOUND, resolution="See: swg images ls")
    for each in ids:
        session.client.delete_image(each)
    session.say(f"{image} is removed")
    show_removed(session, image)


def _by_name(session: Session, name: str) -> list[ImageView]:
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return [image for image in _all(session) if image.reference in (name, tagged)]


def _all(session: Session) -> list[ImageView]:
    return every(lambda cursor: session.client.list_images(project=session.project, limit=MOST, cursor=cursor))
