"""`swg launch`: from an image, or a directory with a manifest, to a URL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shellwego.cli.deploy import deploy_manifest
from shellwego.cli.failure import CONFLICT, USAGE, Failure
from shellwego.cli.manifest import FILE_NAME, ManifestFile, manifest_in
from shellwego.cli.session import Session, shared

if TYPE_CHECKING:
    from shellwego.client.generated import AppView

_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_MAX_NAME = 40
_CANNOT_BUILD = (
    "Images are not built here yet. Build and load it: docker build -t NAME:v1 . && docker save NAME:v1 |"
    " swg images load NAME:v1 -; then: swg launch -i NAME:v1"
)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=".")
@click.option("-i", "--image", metavar="IMAGE", help="A loaded name, a registry reference, or a FILE.wasm.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port that the app listens on.")
@click.option("--check-path", metavar="PATH", help="Healthy is what answers 2xx or 3xx here.")
@click.option("--no-deploy", is_flag=True, help="Write the manifest and make the app; deploy nothing.")
@click.option("--detach", is_flag=True, help="Return once the deploy has begun; see: swg status.")
@shared
def launch(
    session: Session,
    directory: Path,
    image: str | None,
    port: int | None,
    check_path: str | None,
    no_deploy: bool,
    detach: bool,
) -> None:
    """Make an app of an image, or of a DIRECTORY with a shellwego.toml, and deploy it.

    Where there is no manifest, one is written: it is named after -a, or after the directory.
    """
    found = manifest_in(directory)
    if found is None:
        found = _written(session, directory, image, port, check_path)
        session.say(f"wrote {found.path}")
    elif image is not None or port is not None or check_path is not None:
        raise click.UsageError(f"{found.path} says what to deploy; change it there, or: swg deploy -i IMAGE")
    _ensure_app(session, found)
    if not no_deploy:
        deploy_manifest(session, found, detach=detach)


def _written(
    session: Session, directory: Path, image: str | None, port: int | None, check_path: str | None
) -> ManifestFile:
    """Write a manifest into a directory that has none, once what it says is known to make sense."""
    import tomli_w  # noqa: PLC0415

    if image is None:
        has_dockerfile = (directory / "Dockerfile").is_file()
        raise Failure(
            f"there is no {FILE_NAME} in {directory}, and no image was given",
            code=USAGE,
            resolution=_CANNOT_BUILD if has_dockerfile else "Give one: swg launch -i IMAGE --port N",
        )
    name = session.app_option or _name_of(directory)
    if _find_app(session, name) is not None:
        raise Failure(
            f"there is an app {name} already",
            code=CONFLICT,
            resolution=f"Choose another name: swg launch -a NAME -i {image}",
        )
    port = port or _exposed_port(session, image)
    document: dict[str, object] = {"app": name, "build": {"image": image}}
    if port is not None:
        document["http_service"] = {"internal_port": port}
    if check_path is not None:
        document["checks"] = [{"type": "http", "path": check_path}]
    path = directory / FILE_NAME
    try:
        with path.open("x") as file:
            file.write(tomli_w.dumps(document))
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error
    try:
        return ManifestFile(path)
    except Failure:
        path.unlink()
        raise


def _name_of(directory: Path) -> str:
    """A directory's name as the name of an app.

    Raises:
        Failure: nothing of it is left.
    """
    name = _NOT_IN_NAMES.sub("-", directory.resolve().name.lower()).strip("-0123456789")[:_MAX_NAME].rstrip("-")
    if not name:
        raise Failure("the directory's name is none for an app", code=USAGE, resolution="Give one: -a NAME")
    return name


def _exposed_port(session: Session, image: str) -> int | None:
    """The one port that a known image says it listens on."""
    known = session.client.list_images(project=session.project, q=image, limit=100).data
    ports = next((each.exposed_ports for each in known if each.reference == image), [])
    if len(ports) == 1:
        session.say(f"{image} says that it listens on port {ports[0]}")
        return ports[0]
    session.say("no port is known, so no requests will reach the app; for a server, give --port N")
    return None


def _find_app(session: Session, name: str) -> AppView | None:
    from shellwego.client.transport import ApiProblem  # noqa: PLC0415

    try:
        return session.client.get_app(name, project=session.project)
    except ApiProblem as problem:
        if problem.code != "app-not-found":
            raise
        return None


def _ensure_app(session: Session, found: ManifestFile) -> None:
    """Make the app that a manifest names, unless it is there."""
    from shellwego.client.generated import AppCreate  # noqa: PLC0415

    name = found.manifest.app
    if _find_app(session, name) is None:
        session.client.create_app(AppCreate(name=name), project=session.project)
        session.say(f"made the app {name}")
