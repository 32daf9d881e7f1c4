"""What goes through the schema comes out as it went in."""

from __future__ import annotations

import math
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.backends import Acceleration, BackendCapabilities, BackendStatus, GuestKind, Isolation, Readiness
from plasmavmc.errors import (
    CapacityError,
    ConflictError,
    ForbiddenError,
    GuestError,
    HostError,
    ImageError,
    InvalidSpecError,
    NotFoundError,
    PlasmaError,
    UnauthenticatedError,
    UnavailableError,
    WorkloadError,
)
from plasmavmc.guest.api import ExecExit, ExecOutput
from plasmavmc.policy import Destination, IpProtocol, Opening
from plasmavmc.rpc.api import (
    Amount,
    Image,
    ImageOrder,
    ImageProgress,
    Node,
    RegistryLogin,
    Scheduling,
    Upload,
    VmFilter,
)
from plasmavmc.rpc.conversions import images, nodes, specs, streams, values, vms
from plasmavmc.rpc.errors import _told, code_of, status_of
from plasmavmc.rpc.v1 import types_pb2, vm_pb2
from plasmavmc.states import VmState
from plasmavmc.types import (
    DiskSource,
    DiskSpec,
    ExecSpec,
    FileSpec,
    ForkIdentity,
    LogLine,
    LogStream,
    NetworkSpec,
    NetworkUsage,
    Pressure,
    RateLimit,
    Scope,
    TerminalSize,
    Vm,
    VmResources,
    VmSpec,
    VmStatus,
    VmUsage,
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
U32, U64 = st.integers(1, 2**32 - 1), st.integers(0, 2**63)
TIMES = st.just(0.0) | st.floats(1e9, 4e9)
SCOPES = st.builds(Scope, *(st.from_regex(r"[a-z0-9_][a-z0-9_-]{0,9}", fullmatch=True),) * 2)
LABELS = st.dictionaries(TEXT, TEXT, max_size=3)
WORDS = st.none() | st.lists(TEXT, max_size=3).map(tuple)
LIMITS = st.builds(RateLimit, U64, U64)
DESTINATIONS = st.builds(
    lambda network, protocol, ports: Destination(network, protocol, *sorted(ports)),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda each: IPv4Network(each, strict=False)),
    st.sampled_from([IpProtocol.TCP, IpProtocol.UDP]),
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)),
) | st.builds(
    Destination,
    st.just(IPv4Network("203.0.113.7/32")),
    st.sampled_from([IpProtocol.ANY, IpProtocol.ICMP, IpProtocol.TCP]),
)
IDENTITIES = st.from_regex(r"[a-z0-9_-]{1,64}", fullmatch=True)
OPENINGS = st.builds(
    lambda identity, destination: Opening(
        identity, destination.protocol, destination.first_port, destination.last_port
    ),
    st.just("") | IDENTITIES,
    DESTINATIONS,
)
NETWORKS = st.builds(
    NetworkSpec,
    TEXT,
    st.from_regex(r"[a-z0-9_-]{1,51}", fullmatch=True),
    st.just("") | st.from_regex(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}", fullmatch=True),
    st.none() | st.integers(0, 2**32 - 1).map(IPv4Address),
    LIMITS,
    LIMITS,
    egress=st.none() | st.lists(DESTINATIONS, max_size=3).map(tuple),
    identity=st.just("") | IDENTITIES,
    ingress=st.none() | st.lists(OPENINGS, max_size=3).map(tuple),
)
DISKS = st.builds(
    DiskSpec,
    TEXT,
    st.sampled_from([DiskSource.EMPTY, DiskSource.VOLUME, DiskSource.SNAPSHOT]),
    st.booleans(),
    U64,
    TEXT,
    limit=LIMITS,
)
FILES = st.builds(FileSpec, TEXT.map("/{}".format), st.binary(max_size=20), st.integers(1, 0o7777))
SPECS = st.builds(
    VmSpec,
    id=TEXT,
    scope=SCOPES | st.just(Scope("", "")),
    name=TEXT,
    image=TEXT.filter(bool),
    command=WORDS,
    entrypoint=WORDS,
    env=LABELS,
    user=st.none() | TEXT,
    workdir=st.none() | TEXT,
    files=st.lists(FILES, max_size=2).map(tuple),
    resources=st.builds(VmResources, U32, U32, st.integers(1, 2**63), st.integers(1, 2**63), LIMITS),
    networks=st.lists(NETWORKS, max_size=2).map(tuple),
    volumes=st.lists(DISKS, max_size=2).map(tuple),
    hostname=TEXT,
    stop_signal=st.none() | st.sampled_from(["SIGTERM", "9", "RTMIN+3"]),
    stop_grace_s=st.floats(0, 86_400, allow_nan=False),
    snapshot_safe=st.booleans(),
    backend=st.none() | TEXT,
    labels=LABELS,
)
STATUSES = st.builds(
    VmStatus,
    state=st.sampled_from(VmState),
    since=TIMES,
    reason=TEXT,
    reason_code=TEXT,
    permanent=st.booleans(),
    unavailable=st.booleans(),
    exit_code=st.none() | st.integers(-1, 255),
    guest_ready=st.booleans(),
    endpoints=st.lists(TEXT, max_size=2).map(tuple),
    backend=TEXT,
    acceleration=TEXT,
    confinement=TEXT,
    usage=st.builds(
        VmUsage,
        U64,
        st.floats(0, 1e9),
        U64,
        st.none() | st.builds(Pressure, *[st.floats(0, 1)] * 3),
        st.none() | st.builds(NetworkUsage, U64, U64, U64, U64, st.dictionaries(TEXT, U64, max_size=2)),
    ),
    log_tail=st.lists(TEXT, max_size=2).map(tuple),
)


def near(first: float, second: float) -> bool:
    return math.isclose(first, second, abs_tol=1e-9)


@given(SPECS)
def test_a_specification_arrives_whole(spec: VmSpec) -> None:
    message = types_pb2.VmSpec.FromString(specs.spec_to_pb(spec, secrets=True).SerializeToString())
    got = specs.spec_from_pb(message)
    assert near(got.stop_grace_s, spec.stop_grace_s)
    assert specs.spec_to_pb(got, secrets=True) == message
    assert got == VmSpec(
        **{name: getattr(spec, name) for name in VmSpec.__slots__} | {"stop_grace_s": got.stop_grace_s}
    )


@given(SPECS, STATUSES)
def test_a_vm_is_told_without_environment_and_files(spec: VmSpec, status: VmStatus) -> None:
    told = vms.vm_from_pb(types_pb2.Vm.FromString(vms.vm_to_pb(Vm(spec, status)).SerializeToString()))
    assert told.spec.env == {}
    assert told.spec.files == ()
    assert told.spec.labels == spec.labels
    assert told.status == status


def test_what_is_absent_gets_its_default() -> None:
    message = types_pb2.VmSpec(image="sample")
    assert specs.spec_from_pb(message) == VmSpec("", Scope("", ""), "", "sample")


@given(st.sets(st.sampled_from(VmState)), LABELS, st.none() | SCOPES)
def test_filters_arrive(states: set[VmState], labels: dict[str, str], scope: Scope | None) -> None:
    chosen = VmFilter(frozenset(states), labels, scope)
    assert vms.filter_from_pb(vms.filter_to_pb(chosen)) == chosen


@given(st.lists(st.builds(ForkIdentity, TEXT, TEXT, TEXT), min_size=1, max_size=64).map(tuple))
def test_copies_arrive(copies: tuple[ForkIdentity, ...]) -> None:
    request = vm_pb2.ForkVmRequest(copies=[vms.copy_to_pb(each) for each in copies])
    assert vms.copies_from_pb(request) == copies


@given(st.lists(TEXT, min_size=1).filter(lambda words: words[0]), LABELS, st.none() | TEXT, st.booleans())
def test_commands_arrive(words: list[str], env: dict[str, str], user: str | None, terminal: bool) -> None:
    spec = ExecSpec(tuple(words), env, user, user, TerminalSize(3, 4) if terminal else None)
    assert streams.exec_from_pb(streams.exec_to_pb("vm_1", spec)) == spec


@pytest.mark.parametrize(
    "item", [ExecOutput(LogStream.STDOUT, b"a"), ExecOutput(LogStream.STDERR, b""), ExecExit(0), ExecExit(143)]
)
def test_output_arrives(item: ExecOutput | ExecExit) -> None:
    assert streams.output_from_pb(streams.output_to_pb(item)) == item


@given(st.builds(LogLine, TIMES, st.sampled_from(LogStream), TEXT))
def test_log_lines_arrive(line: LogLine) -> None:
    assert streams.line_from_pb(streams.line_to_pb(line)) == line


@given(TIMES)
def test_a_time_loses_nothing(moment: float) -> None:
    assert values.time_from_pb(values.time_to_pb(moment)) == moment


IMAGES = st.builds(
    Image,
    SCOPES,
    TEXT,
    st.lists(TEXT, max_size=2).map(tuple),
    st.sampled_from(GuestKind),
    U64,
    TIMES,
    st.lists(TEXT, max_size=2).map(tuple),
    st.lists(TEXT, max_size=2).map(tuple),
    TEXT,
    TEXT,
    st.lists(st.integers(1, 65535), max_size=2).map(tuple),
    LABELS,
)


@given(IMAGES)
def test_images_arrive(image: Image) -> None:
    assert images.image_from_pb(images.image_to_pb(image)) == image


@given(
    SCOPES | st.just(Scope("", "")),
    TEXT.filter(bool) | st.sampled_from(Upload),
    TEXT,
    st.none() | st.builds(RegistryLogin, TEXT, TEXT),
)
def test_orders_arrive(scope: Scope, source: str | Upload, name: str, login: RegistryLogin | None) -> None:
    order = ImageOrder(scope, source, name, login)
    assert images.order_from_pb(images.order_to_pb(order, "r1")) == order


def test_a_password_does_not_show() -> None:
    assert "canary" not in repr(ImageOrder(Scope("a", "b"), "r", login=RegistryLogin("me", "canary")))


@given(TEXT, U64, U64)
def test_progress_arrives(stage: str, done: int, total: int) -> None:
    progress = ImageProgress(stage, done, total)
    assert images.progress_from_pb(images.progress_to_pb(progress)) == progress


BACKENDS = st.builds(
    BackendStatus,
    st.just("kvm"),
    st.sampled_from(Readiness),
    TEXT,
    st.none()
    | st.builds(
        BackendCapabilities,
        st.just("kvm"),
        st.sampled_from(Acceleration),
        st.sampled_from(Isolation),
        st.sets(st.sampled_from(GuestKind)).map(lambda kinds: tuple(kind for kind in GuestKind if kind in kinds)),
        U32,
        U64,
        U32,
        U32,
        *(st.booleans(),) * 7,
        TEXT,
        *(st.booleans(),) * 2,
    ),
)
AMOUNTS = st.builds(Amount, U64, U64, U64, U32)


@given(
    st.builds(
        Node,
        TEXT,
        TEXT,
        st.sampled_from(Scheduling),
        AMOUNTS,
        AMOUNTS,
        st.lists(BACKENDS, max_size=2).map(tuple),
        TEXT,
        LABELS,
    )
)
def test_nodes_arrive(node: Node) -> None:
    assert nodes.node_from_pb(nodes.node_to_pb(node)) == node


def reaching(*destinations: types_pb2.Destination) -> types_pb2.VmSpec:
    egress = types_pb2.Egress(destinations=destinations)
    return types_pb2.VmSpec(image="x", networks=[types_pb2.NetworkSpec(network_id="n", egress=egress)])


def open_to(*openings: types_pb2.Opening) -> types_pb2.VmSpec:
    ingress = types_pb2.Ingress(openings=openings)
    return types_pb2.VmSpec(image="x", networks=[types_pb2.NetworkSpec(network_id="n", ingress=ingress)])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (types_pb2.VmSpec(), "spec.image"),
        (types_pb2.VmSpec(image="x" * 513), "spec.image"),
        (types_pb2.VmSpec(image="x", scope=types_pb2.Scope(org="A", project="b")), "spec.scope.org"),
        (types_pb2.VmSpec(image="x", networks=[types_pb2.NetworkSpec()]), "spec.networks[0].network_id"),
        (
            types_pb2.VmSpec(image="x", networks=[types_pb2.NetworkSpec(network_id="n", ipv4="1.2.3")]),
            "spec.networks[0].ipv4",
        ),
        (
            types_pb2.VmSpec(image="x", networks=[types_pb2.NetworkSpec(network_id="n", mac="01:00:00:00:00:00")]),
            "spec.networks[0].mac",
        ),
        (reaching(types_pb2.Destination()), "spec.networks[0].egress.destinations[0].network"),
        (reaching(types_pb2.Destination(network="::/0")), "spec.networks[0].egress.destinations[0].network"),
        (
            reaching(types_pb2.Destination(network="192.0.2.0/24", protocol=9)),  # type: ignore[arg-type]
            "spec.networks[0].egress.destinations[0].protocol",
        ),
        (
            reaching(types_pb2.Destination(network="192.0.2.0/24", first_port=80)),
            "spec.networks[0].egress.destinations[0].first_port",
        ),
        (
            reaching(*(types_pb2.Destination(network="192.0.2.0/24") for _ in range(33))),
            "spec.networks[0].egress.destinations",
        ),
        (
            types_pb2.VmSpec(image="x", networks=[types_pb2.NetworkSpec(network_id="n", identity="A")]),
            "spec.networks[0].identity",
        ),
        (open_to(types_pb2.Opening(identity="*")), "spec.networks[0].ingress.openings[0].identity"),
        (open_to(types_pb2.Opening(protocol=9)), "spec.networks[0].ingress.openings[0].protocol"),  # type: ignore[arg-type]
        (open_to(types_pb2.Opening(first_port=80)), "spec.networks[0].ingress.openings[0].first_port"),
        (open_to(*(types_pb2.Opening() for _ in range(65))), "spec.networks[0].ingress.openings"),
        (types_pb2.VmSpec(image="x", volumes=[types_pb2.DiskSpec()]), "spec.volumes[0].source"),
        (types_pb2.VmSpec(image="x", volumes=[types_pb2.DiskSpec(source=77)]), "spec.volumes[0].source"),  # type: ignore[arg-type]
        (types_pb2.VmSpec(image="x", files=[types_pb2.FileSpec(path="/x", mode=0o10000)]), "spec.files[0].mode"),
        (types_pb2.VmSpec(image="x", command=types_pb2.StringList(values=["a"] * 5000)), "spec.command"),
        (types_pb2.VmSpec(image="x", labels={str(n): "" for n in range(65)}), "spec.labels"),
        (types_pb2.VmSpec(image="x", user="\0"), "spec.user"),
    ],
)
def test_each_field_that_makes_no_sense_is_named(message: types_pb2.VmSpec, field: str) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        specs.spec_from_pb(message)
    assert refused.value.field == field


ERRORS: list[PlasmaError] = [
    CapacityError("full", "no room", details="seen", resolution="do this"),
    ConflictError("vm-exists", "there is one"),
    ForbiddenError("not-allowed", "no"),
    GuestError("guest-gone", "gone"),
    HostError("no-backend", "none"),
    ImageError("digest-mismatch", "wrong"),
    ImageError("image-not-found", "none"),
    ImageError("registry-unauthorized", "no"),
    InvalidSpecError("spec.image", "is needed", resolution="give one"),
    NotFoundError("vm-not-found", "none"),
    UnauthenticatedError("bad-token", "no"),
    UnavailableError("backend-probing", "wait"),
    WorkloadError("no-such-command", "none"),
    PlasmaError("other", "ünïcode — “quotes”"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__} {error.code}")
def test_an_error_comes_back_as_what_it_was(error: PlasmaError) -> None:
    told = _told(status_of(error).SerializeToString())
    assert type(told) is type(error)
    assert vars(told) == vars(error)


def test_only_what_may_go_away_by_itself_is_unavailable_or_exhausted() -> None:
    for error in ERRORS:
        code = code_of(error).name
        assert (code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")) == error.temporary, error.code


def test_a_status_fits_into_the_trailers_of_a_response() -> None:
    long: dict[str, Any] = {"details": "d" * 100_000, "resolution": "r" * 100_000}
    for error in (HostError("x", "b" * 100_000, **long), InvalidSpecError("f" * 100_000, "b" * 100_000)):
        assert len(status_of(error, subject="vm", state="running").SerializeToString()) < 8000
