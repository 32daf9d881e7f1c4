"""What a real `plasmavmc serve` says to wishes that cannot be served, to strangers, and to names of what is gone: a code, a
reason that stays, the field at fault; and that nothing of any of them is left."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from examples.demo.leftovers import of_installation
from plasmavmc.backends import Readiness
from plasmavmc.errors import InvalidSpecError, PlasmaError
from plasmavmc.host.configuration import FIRST_UID
from plasmavmc.rpc.api import ImageOrder, Upload
from plasmavmc.rpc.client import EngineClient, connect
from plasmavmc.rpc.errors import error_of
from plasmavmc.rpc.v1 import vm_pb2
from plasmavmc.types import (
    MIB,
    DiskSource,
    DiskSpec,
    ExecSpec,
    FileSpec,
    ForkIdentity,
    NetworkSpec,
    PublishedPort,
    Scope,
    VmResources,
    VmSpec,
    vm_key,
)
from tests.contract.images_samples import chunked, entry, image, layer, oci_layout
from tests.real.test_plasmavmc_serve import HOME, PATIENCE_S, Server, scratch

pytestmark = pytest.mark.real

TOKEN = "of-a-stranger"
C = grpc.StatusCode
Ask = Callable[[EngineClient], Awaitable[object]]
GOOD = VmSpec("vm_good", HOME, "good", "app:v1", resources=VmResources(memory_bytes=128 * MIB))


@dataclass(frozen=True)
class Refusal:
    what: str
    ask: Ask
    status: grpc.StatusCode
    reason: str
    field: str = ""


def create(**changes: object) -> Ask:
    spec = replace(GOOD, id=f"vm_{vm_key(repr(changes))}", name="bad", **changes)  # type: ignore[arg-type]
    return lambda client: client.vms.create(spec)


def sized(**sizes: int) -> Ask:
    return create(resources=replace(GOOD.resources, **sizes))


def upload(kind: Upload, data: bytes, name: str = "bad:v1") -> Ask:
    return lambda client: told(client.images.register(ImageOrder(HOME, kind, name), chunked(data)))


async def told(answers: AsyncIterator[object]) -> list[object]:
    return [answer async for answer in answers]


async def reused(client: EngineClient) -> None:
    await client.vms.delete("vm_gone", request_id="one-request")
    await client.vms.delete("vm_good", request_id="one-request")


async def listed(client: EngineClient) -> None:
    """The client itself never shows a token."""
    try:
        await client.vms._stub.ListVms(vm_pb2.ListVmsRequest(page_token="of another life"))
    except grpc.aio.AioRpcError as error:
        raise error_of(error) from error


NET = NetworkSpec("", "net_1")
HOSTILE = layer(entry("../outside", b"1"))
REFUSALS = (
    Refusal("more memory than any host has", sized(memory_bytes=1 << 60), C.RESOURCE_EXHAUSTED, "no-memory"),
    Refusal(
        "less memory than a VM needs",
        sized(memory_bytes=MIB),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.resources.memory_bytes",
    ),
    Refusal(
        "more vCPUs than a VM can have",
        sized(vcpus=100_000),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.resources.vcpus",
    ),
    Refusal(
        "a larger disk than can be",
        sized(disk_bytes=1 << 62),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.resources.disk_bytes",
    ),
    Refusal(
        "more CPU time than there is",
        sized(cpu_milli=1 << 31),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.resources.cpu_milli",
    ),
    Refusal(
        "an environment without bounds",
        create(env={"A": "x" * (2 * MIB)}),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.env",
    ),
    Refusal("no name of a variable", create(env={"A=B": "x"}), C.INVALID_ARGUMENT, "invalid-spec", "spec.env"),
    Refusal(
        "files without bounds",
        create(files=tuple(FileSpec(f"/{n}", bytes(MIB)) for n in range(5))),
        C.RESOURCE_EXHAUSTED,
        "too-large",
    ),
    Refusal(
        "a file at no place",
        create(files=(FileSpec("etc/x", b""),)),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.files[0].path",
    ),
    Refusal(
        "a name that is no host's", create(hostname="no host"), C.INVALID_ARGUMENT, "invalid-spec", "spec.hostname"
    ),
    Refusal("no command at all", create(command=(), entrypoint=()), C.INVALID_ARGUMENT, "invalid-spec", "spec.command"),
    Refusal(
        "a signal that is none", create(stop_signal="SIGNOT"), C.INVALID_ARGUMENT, "invalid-spec", "spec.stop_signal"
    ),
    Refusal("an unknown backend", create(backend="xen"), C.INVALID_ARGUMENT, "invalid-spec", "spec.backend"),
    Refusal("a backend for other images", create(backend="wasm"), C.INVALID_ARGUMENT, "invalid-spec", "spec.backend"),
    Refusal(
        "two networks",
        create(networks=(NET, replace(NET, network_id="net_2"))),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.networks",
    ),
    Refusal(
        "a port without a network",
        create(published=(PublishedPort(8080, 80),)),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.published",
    ),
    Refusal(
        "a volume, which this node has none of",
        create(volumes=(DiskSpec("vol_a", DiskSource.VOLUME),)),
        C.INVALID_ARGUMENT,
        "invalid-spec",
        "spec.volumes",
    ),
    Refusal("an image that nobody registered", create(image="other:v1"), C.NOT_FOUND, "image-not-found"),
    Refusal(
        "a VM with an id that is taken",
        lambda c: c.vms.create(replace(GOOD, user="web")),
        C.ALREADY_EXISTS,
        "vm-exists",
    ),
    Refusal("one request id for two requests", reused, C.ALREADY_EXISTS, "request-id-reused"),
    Refusal("a page of another list", listed, C.INVALID_ARGUMENT, "invalid-spec", "page_token"),
    *(
        Refusal(f"to {name} a VM that is gone", ask, C.NOT_FOUND, "vm-not-found")
        for name, ask in (
            ("start", lambda client: client.vms.start("vm_gone")),
            ("stop", lambda client: client.vms.stop("vm_gone")),
            ("suspend", lambda client: client.vms.suspend("vm_gone")),
            ("resume", lambda client: client.vms.resume("vm_gone")),
            ("restrict", lambda client: client.vms.restrict("vm_gone", ())),
            ("screen", lambda client: client.vms.screen("vm_gone", "web", ())),
            ("look at", lambda client: client.vms.get("vm_gone")),
            ("copy", lambda client: client.vms.fork("vm_gone", [ForkIdentity("vm_copy", "copy")])),
            ("read the logs of", lambda client: told(client.vms.logs("vm_gone"))),
        )
    ),
    Refusal(
        "to suspend a VM that does not run", lambda c: c.vms.suspend("vm_good"), C.FAILED_PRECONDITION, "vm-pending"
    ),
    Refusal(
        "to resume a VM that does not sleep", lambda c: c.vms.resume("vm_good"), C.FAILED_PRECONDITION, "vm-pending"
    ),
    Refusal(
        "a command in a VM that does not run",
        lambda c: c.vms.exec("vm_good", ExecSpec(("a",))),
        C.FAILED_PRECONDITION,
        "vm-not-running",
    ),
    Refusal("a module that is none", upload(Upload.WASM, b"not wasm" * 100), C.INVALID_ARGUMENT, "image-wasm"),
    Refusal("an archive that is none", upload(Upload.TAR, b"no tar" * 1000), C.INVALID_ARGUMENT, "image-tar"),
    Refusal(
        "an archive that ends early",
        upload(Upload.TAR, oci_layout(image(HOSTILE))[:3000]),
        C.INVALID_ARGUMENT,
        "image-archive",
    ),
    Refusal(
        "a layer that leads out of its image",
        upload(Upload.TAR, oci_layout(image(HOSTILE))),
        C.INVALID_ARGUMENT,
        "image-path",
    ),
    Refusal(
        "to remove an image that is used",
        lambda c: c.images.delete("app:v1", HOME),
        C.FAILED_PRECONDITION,
        "image-in-use",
    ),
)
"""To a server that has the image `app:v1` and the VM `vm_good`, which was never started."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with scratch() as made:
        policy = made.root / "policy.toml"
        policy.write_text(
            '[[principals]]\nname = "root"\nunix_uid = 0\ngrants = [{ role = "admin" }]\n'
            f'[[principals]]\nname = "stranger"\ntoken_sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n'
            'grants = [{ role = "operator", org = "other", project = "shop" }]\n'
        )
        policy.chmod(0o644)
        made.start("--policy", str(policy))
        yield made


@dataclass(frozen=True)
class Traces:
    """What a wish could leave: on the host, in files, in the processes of the server. Blobs are the collector's."""

    host: frozenset[str]
    files: tuple[str, ...]
    descriptors: Mapping[int, int]


def _descriptors(pid: int) -> int:
    """None, of a process that has just ended: seats come and go."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except FileNotFoundError:
        return 0


def traces(server: Server) -> Traces:
    assert server.process is not None
    pids = [server.process.pid, *unprivileged(server.process.pid)]
    return Traces(
        of_installation(server.data_dir),
        tuple(sorted(str(path) for path in server.data_dir.rglob("*") if "blobs" not in path.parts)),
        {pid: _descriptors(pid) for pid in pids},
    )


async def settled(server: Server) -> Traces:
    """What there is when nothing has changed for a second: a seat for the next VMM is made beside."""
    async with asyncio.timeout(PATIENCE_S):
        found, same = traces(server), 0
        while same < 4:
            await asyncio.sleep(0.25)
            now = traces(server)
            found, same = now, same + 1 if now == found else 0
        return found


def unprivileged(helper: int) -> list[int]:
    """The server proper, which the helper has as a child beside its VMMs."""
    children = [int(child) for child in Path(f"/proc/{helper}/task/{helper}/children").read_text().split()]
    return [child for child in children if Path(f"/proc/{child}").stat().st_uid < FIRST_UID]


async def probed(client: EngineClient) -> None:
    """Return when no probe boots a guest any more."""
    async with asyncio.timeout(2 * PATIENCE_S):
        while any(each.readiness is Readiness.PROBING for each in (await client.nodes.get()).backends):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def prepared(client: EngineClient) -> None:
    sample = image(layer(entry("app", b"#!/nothing", mode=0o755)), config={"Entrypoint": ["/app"]})
    await told(client.images.register(ImageOrder(HOME, Upload.TAR, "app:v1"), chunked(oci_layout(sample))))
    await probed(client)
    await client.vms.create(GOOD)


async def heard(client: EngineClient, refusal: Refusal) -> list[str]:
    """What is not as it should be in the answer to one wish."""
    try:
        await refusal.ask(client)
    except PlasmaError as error:
        status = error.__cause__.code() if isinstance(error.__cause__, grpc.aio.AioRpcError) else None
        field = error.field if isinstance(error, InvalidSpecError) else ""
        found = (status, error.code, field)
        wanted = (refusal.status, refusal.reason, refusal.field)
        return [] if found == wanted else [f"{refusal.what}: {found}, not {wanted}: {error}"]
    return [f"{refusal.what}: it was not refused"]


async def test_what_cannot_be_is_refused_by_name_and_leaves_nothing(server: Server) -> None:
    async with connect(server.address) as client:
        await prepared(client)
        before = await settled(server)
        wrong = [each for refusal in REFUSALS for each in await heard(client, refusal)]
        assert "\n".join(wrong) == ""
        assert [vm.spec.id async for vm in client.vms.list_vms()] == ["vm_good"]
        assert traces(server) == before
        await client.vms.delete("vm_good")
        await client.images.delete("app:v1", HOME)


async def test_a_stranger_is_told_of_nothing_that_is_another_s(server: Server) -> None:
    scope = Scope("other", "shop")
    asked: tuple[Refusal, ...] = (
        Refusal("a VM elsewhere", lambda c: c.vms.create(replace(GOOD, id="vm_x")), C.NOT_FOUND, "scope-not-found"),
        Refusal("to look at a VM", lambda c: c.vms.get("vm_good"), C.NOT_FOUND, "vm-not-found"),
        Refusal("to end a VM", lambda c: c.vms.stop("vm_good"), C.NOT_FOUND, "vm-not-found"),
        Refusal(
            "a VM of another's image",
            lambda c: c.vms.create(replace(GOOD, id="vm_x", scope=scope)),
            C.NOT_FOUND,
            "image-not-found",
        ),
        Refusal(
            "a VM by a taken id", lambda c: c.vms.create(replace(GOOD, scope=scope)), C.NOT_FOUND, "image-not-found"
        ),
        Refusal("to remove an image", lambda c: c.images.delete("app:v1", HOME), C.NOT_FOUND, "image-not-found"),
        Refusal("an image elsewhere", upload(Upload.WASM, b"\0asm\1\0\0\0"), C.NOT_FOUND, "scope-not-found"),
        Refusal("to close the node", lambda c: c.nodes.cordon(), C.NOT_FOUND, "node-not-found"),
    )
    async with connect(server.address) as root, connect(server.address, token=TOKEN) as stranger:
        await prepared(root)
        before = await settled(server)
        assert "\n".join([each for refusal in asked for each in await heard(stranger, refusal)]) == ""
        assert [vm async for vm in stranger.vms.list_vms()] == []
        await stranger.vms.delete("vm_good")  # what is gone is gone: as for a VM that never was
        assert [vm.spec.id async for vm in root.vms.list_vms()] == ["vm_good"]
        assert traces(server) == before
        await root.vms.delete("vm_good")
        await root.images.delete("app:v1", HOME)
