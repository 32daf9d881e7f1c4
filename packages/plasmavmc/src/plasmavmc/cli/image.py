"""`plasmavmc image`."""

from __future__ import annotations

import getpass
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from plasmavmc.cli.connection import connection
from plasmavmc.cli.ends import USAGE, Failure, failure_of
from plasmavmc.cli.lazy import HELP
from plasmavmc.cli.output import result_options, show, show_done, show_ends, show_one
from plasmavmc.cli.progress import Progress
from plasmavmc.cli.values import Size
from plasmavmc.cli.views import image_document, image_row
from plasmavmc.cli.vm.wish import chunks_of, pull_image, taken_in
from plasmavmc.cli.working import with_engine

if TYPE_CHECKING:
    from plasmavmc.rpc.api import Image
    from plasmavmc.rpc.client import EngineClient

PASSWORD_VARIABLE = "PLASMAVMC_REGISTRY_PASSWORD"  # noqa: S105 - the name of a variable


@click.group(context_settings=dict(HELP))
def image() -> None:
    """Images."""


def _name_of(found: Image) -> str:
    return found.names[0] if found.names else found.digest


def _show(output: str, found: Image) -> None:
    pairs = {"name": ", ".join(found.names), **{k: v for k, v in image_row(found).items() if k != "name"}}
    show_one(output, image_document(found), {**pairs, "digest": found.digest}, name=found.digest)


@image.command(context_settings=dict(HELP))
@click.argument("reference", metavar="HOST/NAME[:TAG]")
@click.option("--name", default="", help="Under which name it is kept. [the reference]")
@click.option("--username", default="", help=f"For the registry; the password is {PASSWORD_VARIABLE}, or asked for.")
@result_options
def pull(output: str, reference: str, name: str, username: str) -> None:
    """Bring an image in from a registry. One that is here already is looked for anew."""
    scope = connection().scope()
    password = os.environ.get(PASSWORD_VARIABLE, "") or (getpass.getpass("Password: ") if username else "")

    async def work(engine: EngineClient) -> Image:
        from plasmavmc.rpc.api import RegistryLogin  # noqa: PLC0415

        login = RegistryLogin(username, password) if username else None
        return await pull_image(engine, reference, scope, quiet=output != "table", kept_as=name, login=login)

    _show(output, with_engine(work))


@image.command(context_settings=dict(HELP))
@click.option("-i", "--input", "path", type=click.Path(path_type=Path), help="The tar. [stdin]")
@click.option("--name", default="", help="Under which name it is kept. [its digest alone]")
@click.option("--wasm", is_flag=True, help="It is a WebAssembly module or component.")
@result_options
def load(output: str, path: Path | None, name: str, *, wasm: bool) -> None:
    """Bring an image in from a tar as `docker save` or an OCI layout has it."""
    scope = connection().scope()
    if path is None and sys.stdin.isatty():
        raise Failure("no tar is given: stdin is a terminal", code=USAGE, resolution="Give -i FILE, or pipe one in.")

    async def work(engine: EngineClient) -> Image:
        from plasmavmc.rpc.api import ImageOrder, Upload  # noqa: PLC0415
        from plasmavmc.types import Scope  # noqa: PLC0415

        order = ImageOrder(scope or Scope("", ""), Upload.WASM if wasm else Upload.TAR, name)
        with _opened(path) as stream:
            progress = Progress(name or str(path or "stdin"), quiet=output != "table")
            return await taken_in(engine, order, chunks_of(stream), progress)

    _show(output, with_engine(work))


def _opened(path: Path | None) -> BinaryIO:
    try:
        return sys.stdin.buffer if path is None else path.open("rb")
    except OSError as error:
        raise Failure(f"-i: {path} cannot be read: {error.strerror}", code=USAGE) from error


@image.command(context_settings=dict(HELP))
@result_options
def ls(output: str) -> None:
    """List images."""
    scope = connection().scope() if connection().project else None

    async def work(engine: EngineClient) -> list[Image]:
        return [found async for found in engine.images.list_images(scope)]

    found = with_engine(work)
    show(
        output,
        [image_document(each) for each in found],
        [image_row(each) for each in found],
        name="name",
        empty="no images are here",
    )


@image.command(context_settings=dict(HELP))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@result_options
def rm(output: str, images: tuple[str, ...]) -> None:
    """Remove images by name or digest; refused while a VM is made from one. A name alone goes while others point to it."""
    scope = connection().scope()

    async def work(engine: EngineClient) -> tuple[list[str], list[Failure]]:
        from plasmavmc.errors import PlasmaError  # noqa: PLC0415

        done: list[str] = []
        failed: list[Failure] = []
        for each in images:
            try:
                await engine.images.delete(each, scope)
                done.append(each)
            except PlasmaError as error:
                failed.append(failure_of(error))
        return done, failed

    show_ends(output, *with_engine(work))


@image.command(context_settings=dict(HELP))
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--budget", type=Size(), default=0, metavar="SIZE", help="Keep so much, the last used. [nothing]")
@result_options
def gc(output: str, *, budget: int, dry_run: bool) -> None:
    """Remove images that no VM is made from: all, or the longest unused until the rest takes no more than --budget."""
    scope = connection().scope()

    async def work(engine: EngineClient) -> list[str]:
        from plasmavmc.errors import ConflictError  # noqa: PLC0415
        from plasmavmc.images.budget import StoredImage, surplus  # noqa: PLC0415
        from plasmavmc.rpc.api import VmFilter  # noqa: PLC0415

        used = {vm.spec.image async for vm in engine.vms.list_vms(VmFilter())}
        present = [found async for found in engine.images.list_images(scope)]
        unused = [found for found in present if found.digest not in used]
        if budget:
            known = {each.digest: each for each in present}.values()
            stored = [StoredImage(each.digest, each.disk_bytes, each.used_at, each.digest in used) for each in known]
            beyond = surplus(stored, budget, time.time())
            unused = sorted((each for each in unused if each.digest in beyond), key=lambda each: each.used_at)
        removed = []
        for found in unused:
            try:
                if not dry_run:
                    await engine.images.delete(found.digest, found.scope)
            except ConflictError:
                continue  # a VM was made from it since
            removed.append(_name_of(found))
        return removed

    removed = with_engine(work)
    if removed or output == "json":
        show_done(output, removed)
