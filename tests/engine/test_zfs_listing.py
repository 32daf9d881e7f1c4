"""What zfs tells is understood, or is said not to be."""

from __future__ import annotations

import pytest

from plasmavmc.errors import HostError
from plasmavmc.storage.volumes.backend import StoredSnapshot, StoredVolume
from plasmavmc.storage.volumes.zfs.listing import parse_listing

BASE = "tank/swg/swg-abc"


def told(name: str, **properties: str) -> str:
    names = {each: f"shellwego:{each}" for each in ("size", "sealed", "whole")}
    return "".join(f"{name}\t{names.get(key, key)}\t{value}\n" for key, value in properties.items())


LISTING = (
    told(BASE, referenced="31", available="5000", origin="-", size="-", sealed="-")
    + told(f"{BASE}/vol_2", referenced="300", origin=f"{BASE}/vol_1@snap_c", size="64", sealed="yes", whole="yes")
    + told(f"{BASE}/vol_1", referenced="100", origin="-", size="128", sealed="no", whole="yes")
    + told(f"{BASE}/vol_1@snap_c", referenced="40", defer_destroy="on", size="64", sealed="no", whole="yes")
    + told(f"{BASE}/vol_1@snap_b", referenced="60", defer_destroy="off", size="64", sealed="no", whole="yes")
    + told(f"{BASE}/vol_1@snap_a", referenced="50", defer_destroy="off", size="32", sealed="no", whole="-")
    + told(f"{BASE}/vol_3", referenced="1", origin="-", size="64", sealed="no", whole="-")
)


def test_volumes_are_told_with_their_snapshots_and_without_what_is_on_its_way() -> None:
    listing = parse_listing(LISTING)
    assert listing.available == 5000
    assert [each.stored for each in listing.volumes()] == [
        StoredVolume(
            "vol_1",
            128,
            100,
            sealed=False,
            snapshots=(StoredSnapshot("snap_a", 32, 50), StoredSnapshot("snap_b", 64, 60)),
        ),
        StoredVolume("vol_2", 64, 300, sealed=True),
    ]
    assert listing.volume("vol_3") is None


def test_clones_and_owners_are_found() -> None:
    listing = parse_listing(LISTING)
    assert [each.name for each in listing.clones("vol_1")] == ["vol_2"]
    owner = listing.owner("snap_b")
    assert owner is not None
    assert (owner[0].name, owner[1].name) == ("vol_1", "snap_b")
    assert listing.owner("snap_c") is None
    assert listing.taken("snap_c")


@pytest.mark.parametrize("bad", ["", "no tabs\n", f"{BASE}\tavailable\n", f"{BASE}\tavailable\tmuch\n"])
def test_what_is_not_understood_is_said(bad: str) -> None:
    with pytest.raises(HostError) as caught:
        parse_listing(bad)
    assert caught.value.code == "storage-error"
