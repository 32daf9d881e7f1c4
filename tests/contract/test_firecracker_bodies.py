"""Contract tier: every body that the driver can send, against the description of the API, for each pinned release."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.errors import HostError
from plasmavmc.hypervisor.backend import DiskPlan, NicPlan
from plasmavmc.hypervisor.firecracker.backend import CAPABILITIES
from plasmavmc.hypervisor.firecracker.requests import (
    Request,
    boot_requests,
    load_request,
    pause_request,
    resume_request,
    snapshot_request,
    start_request,
)
from plasmavmc.hypervisor.firecracker.versions import parse_version
from plasmavmc.types import MIB, SYSTEM_SCOPE, DiskSource, DiskSpec, NetworkSpec, RateLimit, VmResources, VmSpec
from tests.contract.firecracker_api import REQUESTS, VERSIONS, deprecated, faults, fields

LIMITS = st.builds(RateLimit, st.integers(0, 2**40), st.integers(0, 2**31))
VOLUMES = st.lists(
    st.tuples(st.text(st.characters(codec="ascii"), min_size=1, max_size=40), LIMITS, st.booleans()),
    max_size=CAPABILITIES.max_disks - 2,
    unique_by=lambda volume: volume[0],
)
RESOURCES = st.builds(
    VmResources,
    vcpus=st.integers(1, CAPABILITIES.max_vcpus),
    memory_bytes=st.integers(16 * MIB, CAPABILITIES.max_memory_bytes),
)
RESOURCES_OF_ONE = VmResources()


def wrong(request: Request, version: str) -> list[str]:
    body = json.loads(msgspec.json.encode(request.body))
    found = faults(request.method, request.path, body, version)
    if deprecated(request.method, request.path, body, version):
        found.append(f"{request.path} uses what is deprecated in {version}")
    return found


def a_spec(resources: VmResources = RESOURCES_OF_ONE, volumes: tuple[DiskSpec, ...] = ()) -> VmSpec:
    return VmSpec("vm_one", SYSTEM_SCOPE, "one", "sha256:" + "0" * 64, resources=resources, volumes=volumes)


@pytest.mark.parametrize("version", VERSIONS)
@given(resources=RESOURCES, volumes=VOLUMES)
def test_every_body_that_makes_a_vm_is_one_that_the_release_takes(
    version: str, resources: VmResources, volumes: list[tuple[str, RateLimit, bool]]
) -> None:
    specs = tuple(
        DiskSpec(name, DiskSource.VOLUME, read_only=read_only, limit=limit) for name, limit, read_only in volumes
    )
    disks = (
        DiskPlan("image", 3, True),
        DiskPlan("layer", 4, False),
        *(DiskPlan(each.id, 5, each.read_only) for each in specs),
    )
    limit = specs[0].limit if specs else RateLimit()
    spec = replace(a_spec(resources, specs), networks=(NetworkSpec("nic", "net_a", receive=limit, transmit=limit),))
    nic = NicPlan("n0", -1, "02:00:00:00:00:01", "swgaaaabbbbbbbb")
    for request in (*boot_requests(spec, disks, (nic,)), start_request()):
        assert wrong(request, version) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_body_of_pause_and_snapshot_is_one_that_the_release_takes(version: str) -> None:
    asked = [
        pause_request(),
        resume_request(),
        snapshot_request("/s/state", "/s/memory"),
        load_request("/s/state", "/s/memory"),
    ]
    assert [wrong(request, version) for request in asked] == [[]] * len(asked)


def test_a_limit_on_a_volume_is_a_bucket_that_is_full_again_every_second() -> None:
    volume = DiskSpec("vol_a", DiskSource.VOLUME, limit=RateLimit(bytes_per_second=5 * MIB))
    asked = boot_requests(a_spec(volumes=(volume,)), (DiskPlan("image", 3, True), DiskPlan("vol_a", 4, False)))
    bodies = {request.path: json.loads(msgspec.json.encode(request.body)) for request in asked}
    assert "rate_limiter" not in bodies["/drives/disk0"]
    assert bodies["/drives/disk1"]["rate_limiter"] == {"bandwidth": {"size": 5 * MIB, "refill_time": 1000}}


def test_disks_keep_their_order_and_access_and_none_is_the_root_device() -> None:
    asked = boot_requests(a_spec(), (DiskPlan("image", 3, True), DiskPlan("layer", 4, False)))
    drives = [json.loads(msgspec.json.encode(request.body)) for request in asked if request.path.startswith("/drives/")]
    assert [(each["drive_id"], each["path_on_host"], each["is_read_only"]) for each in drives] == [
        ("disk0", "/disk0", True),
        ("disk1", "/disk1", False),
    ]
    assert not any(each["is_root_device"] for each in drives)


def test_what_the_guest_flushes_is_on_the_hosts_disk_when_it_is_told_so() -> None:
    disks = (DiskPlan("image", 3, True), DiskPlan("layer", 4, False), DiskPlan("vol_a", 5, False))
    asked = boot_requests(a_spec(volumes=(DiskSpec("vol_a", DiskSource.VOLUME),)), disks)
    bodies = {request.path: json.loads(msgspec.json.encode(request.body)) for request in asked}
    assert [bodies[f"/drives/disk{index}"].get("cache_type") for index in range(3)] == [None, "Writeback", "Writeback"]


def test_no_request_of_ours_turns_the_metadata_service_on() -> None:
    assert not [request for request in boot_requests(a_spec(), ()) if request.path.startswith("/mmds")]


def test_memory_that_is_no_whole_number_of_mebibytes_is_rounded_up() -> None:
    [machine, *_] = boot_requests(a_spec(replace(VmResources(), memory_bytes=64 * MIB + 1)), ())
    assert json.loads(msgspec.json.encode(machine.body))["mem_size_mib"] == 65


CHANGES = {
    "1.13.2": {"MmdsConfig.imds_compat", "SnapshotLoad.track_dirty_pages"},
    "1.14.4": {"SnapshotLoad.clock_realtime"},
    "1.15.1": set(),
    "1.16.1": {"NetworkInterface.mtu", "SnapshotLoad.vsock_override"},
}


@pytest.mark.parametrize(("before", "after"), list(pairwise(VERSIONS)))
def test_what_changed_between_two_pinned_releases(before: str, after: str) -> None:
    old, new = (
        {f"{kind}.{name}" for kind in REQUESTS.values() for name in fields(kind, version)}
        for version in (before, after)
    )
    assert new - old == CHANGES[after]
    assert old - new == set()


@pytest.mark.parametrize("version", [*VERSIONS, "1.17.0-dev", "2.0.0"])
def test_a_release_that_is_known_or_later_is_taken(version: str) -> None:
    assert str(parse_version(version)) == version.removesuffix("-dev")


@pytest.mark.parametrize("text", ["", "1.12", "1.11.0", "0.25.2", "1.12.1\n", "x1.12.1", "1.12.1-" + "a" * 99])
def test_what_is_no_version_or_too_old_is_refused(text: str) -> None:
    with pytest.raises(HostError) as refused:
        parse_version(text)
    assert refused.value.code == "firecracker-version"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 64}),
        ("PUT", "/machine-config", {"vcpu_count": True, "mem_size_mib": 64}),
        ("PUT", "/machine-config", {"mem_size_mib": 64}),
        ("PUT", "/machine-config", []),
        ("PUT", "/drives/a", {"drive_id": "b", "is_root_device": False}),
        ("PUT", "/drives/a-b", {"drive_id": "a-b", "is_root_device": False}),
        ("PUT", "/snapshot/load", {"snapshot_path": "/s", "clock_realtime": True}),
        ("DELETE", "/vsock", {}),
    ],
)
def test_the_description_refuses_what_the_vmm_refuses(method: str, path: str, body: object) -> None:
    assert faults(method, path, body, "1.12.1") != []
