"""The manifest on the command line: found, read, checked, shown; `swg manifest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shellwego.cli.failure import USAGE, Failure
from shellwego.cli.groups import NounGroup
from shellwego.cli.output import show_one
from shellwego.cli.session import Session, about_no_app, shared

if TYPE_CHECKING:
    from shellwego.client.generated import AppView, DeploymentCreate
    from shellwego.client.manifest.document import Manifest

FILE_NAME = "shellwego.toml"


class ManifestFile:
    """A manifest that was read from a file."""

    def __init__(self, path: Path) -> None:
        """Raises:
        Failure: it is missing or wrong; each fault with its line.
        """
        from shellwego.client.manifest.faults import ManifestError  # noqa: PLC0415
        from shellwego.client.manifest.reading import parse_manifest, text_of  # noqa: PLC0415

        self.path = path
        try:
            self._text = text_of(path)
            self.manifest: Manifest = parse_manifest(path, self._text)
            self.deployment()
        except ManifestError as error:
            raise Failure(str(error), code=USAGE) from error

    def deployment(self, app: AppView | None = None) -> DeploymentCreate:
        """What it asks for, given the app as it is."""
        from shellwego.client.manifest.deployment import deployment_of  # noqa: PLC0415

        existing = [process.name for process in app.config.processes] if app else []
        return deployment_of(self.path, self._text, self.manifest, existing, existing if app and app.release else [])


def manifest_in(directory: Path) -> ManifestFile | None:
    """The manifest of a directory, if it has one; raises as `ManifestFile`."""
    path = directory / FILE_NAME
    return ManifestFile(path) if path.is_file() else None


@click.group(cls=NounGroup, context_settings={"help_option_names": ["-h", "--help"]})
def manifest() -> None:
    """Check a shellwego.toml, and show what one may say."""


@manifest.command("check")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default=FILE_NAME)
@shared
@about_no_app
def check(session: Session, file: Path) -> None:
    """Read FILE as a deploy would, or stdin where it is -; what is wrong is told with its line. Nothing is asked of the
    platform.
    """
    import msgspec  # noqa: PLC0415

    found = ManifestFile(file)
    deployment = found.deployment()
    pairs = {
        "app": found.manifest.app,
        "image": deployment.image,
        "processes": ", ".join(found.manifest.processes) or "web",
        "variables": ", ".join(deployment.env),
    }
    show_one(session, msgspec.to_builtins(found.manifest), pairs, name=found.manifest.app)


@manifest.command("schema")
def schema() -> None:
    """Print the JSON schema of shellwego.toml."""
    from shellwego.client.manifest.schema import schema_text  # noqa: PLC0415

    click.echo(schema_text(), nl=False)
