"""What is wished for a new VM: the options that `run` and `create` have, and the specification that they mean."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from plasmavmc.cli import values
from plasmavmc.cli.ends import RUN_FAILED, USAGE, Failure
from plasmavmc.cli.progress import Progress

if TYPE_CHECKING:
    from plasmavmc.rpc.api import Image, ImageOrder, RegistryLogin
    from plasmavmc.rpc.client import EngineClient
    from plasmavmc.types import NetworkSpec, Scope, Stdio, VmSpec

DEFAULT_NETWORK = "default"
NO_NETWORK = "none"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MILLI = 1000
_CHUNK = 1024 * 1024
MODULE_SUFFIX = ".wasm"
"""An image with a name that ends so is a file here."""

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--name", metavar="NAME", default="", help="A name, which is its host name too. [made up]"),
    click.option("-i", "--interactive", is_flag=True, help="Pass stdin on."),
    click.option("-t", "--tty", is_flag=True, help="Give the command a terminal."),
    click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="NAME alone: the value it has here."),
    click.option(
        "--env-file", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="Lines NAME=VALUE."
    ),
    click.option("-p", "--publish", multiple=True, metavar="[ADDRESS:]HOST:VM", help="Publish a port. [on 127.0.0.1]"),
    click.option("-v", "--volume", multiple=True, metavar="...", help="Not offered here: copy files with vm cp."),
    click.option(
        "-m", "--memory", type=values.Size(), default="256m", show_default=True, metavar="SIZE", help="Memory."
    ),
    click.option(
        "--cpus", type=values.Cpus(), default="1", show_default=True, metavar="N", help="Processors, also 0.5."
    ),
    click.option("--disk", type=values.Size(), default="4g", show_default=True, metavar="SIZE", help="Writable layer."),
    click.option("--disk-rate", type=values.Size(), metavar="SIZE", help="Bytes a second that its disk gives."),
    click.option("--disk-iops", type=click.IntRange(1), metavar="N", help="Operations a second that its disk does."),
    click.option("--receive-rate", type=values.Size(), metavar="SIZE", help="Bytes a second from the network."),
    click.option("--transmit-rate", type=values.Size(), metavar="SIZE", help="Bytes a second to the network."),
    click.option("-u", "--user", metavar="USER[:GROUP]", help="Whom to run as. [the image's]"),
    click.option("-w", "--workdir", metavar="DIR", help="Where to run. [the image's]"),
    click.option("--entrypoint", metavar="PROGRAM", help="In place of the image's; empty for none."),
    click.option("-l", "--label", "label", multiple=True, metavar="NAME=VALUE", help="A label."),
    click.option(
        "--network", default=DEFAULT_NETWORK, show_default=True, metavar="NAME", help="VMs of a network see each other."
    ),
    click.option(
        "--egress",
        multiple=True,
        metavar="DESTINATION",
        help="Open connections there only, such as 203.0.113.0/24:443/tcp; repeatable; none: nowhere.",
    ),
    click.option(
        "--identity",
        default="",
        metavar="NAME",
        help="What --ingress of VMs of its network knows it by; several may share it.",
    ),
    click.option(
        "--ingress",
        multiple=True,
        metavar="OPENING",
        help="VMs of its network open only this to it, such as web:5432/tcp, or *:80 for all; repeatable; none: nothing.",
    ),
    click.option("--stop-signal", metavar="SIGNAL", help="What asks it to end. [the image's]"),
    click.option(
        "--stop-timeout",
        type=click.FloatRange(0, 86_400),
        default=10.0,
        metavar="SECONDS",
        help="Then it is killed. [10]",
    ),
    click.option("--backend", metavar="NAME", help="Which hypervisor. [the best there is]"),
    click.option("--pull", type=click.Choice(["missing", "always", "never"]), default="missing", show_default=True),
)


def wish_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a new VM, and its image and command."""
    arguments = (
        click.argument("image"),
        click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND [ARG]...]"),
    )
    return reduce(lambda made, option: option(made), reversed((*_OPTIONS, *arguments)), function)


@dataclass(frozen=True, slots=True)
class Wish:
    """The options as they were given."""

    given: Mapping[str, Any]

    @property
    def image(self) -> str:
        image: str = self.given["image"]
        return image

    @property
    def name(self) -> str:
        name: str = self.given["name"]
        return name

    def check(self) -> None:
        """Refuse by name what makes no sense or is not offered, before a server is asked."""
        if self.given["volume"]:
            raise Failure(
                f"-v {self.given['volume'][0]!r}: volumes are not offered here, and no host directory is shared",
                code=RUN_FAILED,
                resolution="Copy files with: plasmavmc vm cp",
            )
        if self.name and not _NAME.fullmatch(self.name):
            raise values.refused("--name", self.name, "a name has 1 to 63 characters of a-z, 0-9 and -")
        for option in ("publish", "receive_rate", "transmit_rate", "egress", "identity", "ingress"):
            if self.given[option] and self.given["network"] == NO_NETWORK:
                name = "-p" if option == "publish" else f"--{option.replace('_', '-')}"
                raise Failure(f"{name} needs a network: leave --network none out", code=USAGE)

    def stdio(self, *, attached: bool) -> Stdio:
        from plasmavmc.types import Stdio  # noqa: PLC0415

        if self.given["tty"]:
            return Stdio.TERMINAL
        if self.given["interactive"]:
            return Stdio.OPEN
        return Stdio.ATTACHED if attached else Stdio.LOGGED

    def spec(self, image: Image, scope: Scope | None, *, attached: bool) -> VmSpec:
        """What the server is asked for; it chooses the id, and the name where there is none."""
        from plasmavmc.types import RateLimit, Scope, VmResources, VmSpec  # noqa: PLC0415

        given, network = self.given, self.given["network"]
        return VmSpec(
            id="",
            scope=scope or Scope("", ""),
            name=self.name,
            image=image.digest,
            command=tuple(given["command"]) or None,
            entrypoint=values.command_words(given["entrypoint"]),
            env=values.environment(given["env_file"], given["env"]),
            user=given["user"],
            workdir=given["workdir"],
            resources=VmResources(
                cpu_milli=given["cpus"],
                vcpus=-(-given["cpus"] // _MILLI),
                memory_bytes=given["memory"],
                disk_bytes=given["disk"],
                disk_limit=RateLimit(given["disk_rate"] or 0, given["disk_iops"] or 0),
            ),
            networks=() if network == NO_NETWORK else (self._network(),),
            stop_signal=given["stop_signal"],
            stop_grace_s=given["stop_timeout"],
            backend=given["backend"],
            labels=values.labels(given["label"]),
            stdio=self.stdio(attached=attached),
            published=tuple(values.port(each) for each in given["publish"]),
        )

    def _network(self) -> NetworkSpec:
        from plasmavmc.types import NetworkSpec, RateLimit  # noqa: PLC0415

        receive, transmit = (RateLimit(self.given[f"{way}_rate"] or 0) for way in ("receive", "transmit"))
        return NetworkSpec(
            "nic0",
            self.given["network"],
            receive=receive,
            transmit=transmit,
            egress=values.egress(self.given["egress"]),
            identity=self.given["identity"],
            ingress=values.ingress(self.given["ingress"]),
        )


async def make(engine: EngineClient, wish: Wish, scope: Scope | None, *, attached: bool, quiet: bool) -> VmSpec:
    """The specification of a VM whose image is there."""
    await _check_name(engine, wish.name, scope)
    image = await ensure_image(engine, wish.image, scope, wish.given["pull"], quiet=quiet)
    return wish.spec(image, scope, attached=attached)


async def _check_name(engine: EngineClient, name: str, scope: Scope | None) -> None:
    """Names are for people, and two VMs of one name confuse them."""
    from plasmavmc.rpc.api import VmFilter  # noqa: PLC0415

    if not name:
        return
    async for vm in engine.vms.list_vms(VmFilter(scope=scope)):
        if vm.spec.name == name:
            raise Failure(
                f"the name {name!r} is in use by {vm.spec.id}, which is {vm.status.state.value}",
                code=RUN_FAILED,
                resolution=f"Remove it (plasmavmc vm rm {vm.spec.id}), or choose another name.",
            )


async def ensure_image(engine: EngineClient, name: str, scope: Scope | None, pull: str, *, quiet: bool) -> Image:
    """The image that a name or digest means, pulled where that is wanted and it names a registry; or that of a module's
    file, taken in."""
    from plasmavmc.errors import NotFoundError  # noqa: PLC0415
    from plasmavmc.images.reference import names_registry  # noqa: PLC0415

    if name.endswith(MODULE_SUFFIX):
        return await _load_module(engine, Path(name), scope, quiet=quiet)
    if pull != "always" or not names_registry(name):
        try:
            return await engine.images.get(name, scope)
        except NotFoundError as error:
            if pull == "never" or not names_registry(name):
                raise Failure(
                    f"there is no image {name[:100]!r} here"
                    + ("" if names_registry(name) else ", and it names no registry to pull it from"),
                    code=RUN_FAILED,
                    resolution="See: plasmavmc image ls. Pull HOST/NAME[:TAG], or load a tar: plasmavmc image load -i FILE",
                ) from error
    return await pull_image(engine, name, scope, quiet=quiet)


async def _load_module(engine: EngineClient, path: Path, scope: Scope | None, *, quiet: bool) -> Image:
    """It has no name here but its digest, which is the same for the same module."""
    from plasmavmc.rpc.api import ImageOrder, Upload  # noqa: PLC0415
    from plasmavmc.types import Scope  # noqa: PLC0415

    order = ImageOrder(scope or Scope("", ""), Upload.WASM, "")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}", code=RUN_FAILED) from error
    with stream:
        return await taken_in(engine, order, chunks_of(stream), Progress(str(path), quiet=quiet))


async def chunks_of(stream: BinaryIO) -> AsyncIterator[bytes]:
    """A file's content, in pieces of an upload."""
    while data := await asyncio.to_thread(stream.read, _CHUNK):
        yield data


async def pull_image(
    engine: EngineClient,
    name: str,
    scope: Scope | None,
    *,
    quiet: bool,
    kept_as: str = "",
    login: RegistryLogin | None = None,
) -> Image:
    """Bring an image in from its registry, and tell how far it is."""
    from plasmavmc.rpc.api import ImageOrder  # noqa: PLC0415
    from plasmavmc.types import Scope  # noqa: PLC0415

    order = ImageOrder(scope or Scope("", ""), name, kept_as, login)
    return await taken_in(engine, order, None, Progress(name, quiet=quiet))


async def taken_in(
    engine: EngineClient, order: ImageOrder, chunks: AsyncIterator[bytes] | None, progress: Progress
) -> Image:
    """Follow a registration to its end."""
    from plasmavmc.rpc.api import ImageProgress  # noqa: PLC0415

    try:
        async for told in engine.images.register(order, chunks):
            if not isinstance(told, ImageProgress):
                return told
            progress.update(told)
    finally:
        progress.clear()
    raise Failure("the server ended the registration without an image")
