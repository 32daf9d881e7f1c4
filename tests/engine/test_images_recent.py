"""Which images a node has, and how it gives them out: those it gave out last, readable for a jail, each removed once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmavmc.images.store import ImageStore
from tests.contract.images_samples import MemorySource, Sample, hello
from tests.contract.wasm_modules import SAY
from tests.engine.test_wasm_images import artifact


def sample(number: int) -> Sample:
    """A module with a custom section of its own."""
    return artifact(SAY + bytes((0, 2, 1, 65 + number)))


async def test_the_images_that_were_given_out_last_are_told(tmp_path: Path) -> None:
    now = 1000.0
    store = ImageStore(tmp_path, clock=lambda: now)
    first, second, third = (sample(number) for number in range(3))
    for each in (first, second, third):
        now += 10
        await store.ensure(each.digest, MemorySource(each))
    assert store.recent(2) == tuple(sorted((second.digest, third.digest)))
    now += 10
    await store.ensure(first.digest, MemorySource())
    assert store.recent(2) == tuple(sorted((first.digest, third.digest)))
    assert store.recent(9) == tuple(sorted((first.digest, second.digest, third.digest)))
    await store.remove(first.digest)
    assert store.recent(9) == tuple(sorted((second.digest, third.digest)))
    assert ImageStore(tmp_path).recent(1) == (third.digest,), "after a restart, too"


@pytest.fixture
def closed_umask() -> Iterator[None]:
    """As the platform's processes have it."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("closed_umask")
@pytest.mark.parametrize("image", [hello(), sample(1)], ids=["root file system", "module"])
async def test_what_is_given_out_can_be_read_by_all_who_come_to_it_and_written_by_none(
    tmp_path: Path, image: Sample
) -> None:
    """A jail links such a file, and copies any other, while all other requests wait."""
    store = ImageStore(tmp_path / "images")
    built = await store.ensure(image.digest, MemorySource(image))
    assert built.rootfs.stat().st_mode & 0o7777 == 0o444
    assert built.rootfs.parent.stat().st_mode & 0o077 == 0, "only whoever is handed it comes to it"
    built.rootfs.chmod(0o600)
    again = await ImageStore(tmp_path / "images").ensure(image.digest, MemorySource())
    assert again.rootfs.stat().st_mode & 0o7777 == 0o444, "one that an older version built, too"


async def test_an_image_that_was_removed_while_others_are_collected_is_nobodys_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    store = ImageStore(tmp_path, clock=lambda: now)
    first, second = sample(0), sample(1)
    for each in (first, second):
        await store.ensure(each.digest, MemorySource(each))
    now += 1000
    listed = store.list()
    await store.remove(first.digest)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(store, "list", lambda: listed)
        assert await store.collect(0) > 0
    assert store.list() == ()


async def test_files_that_could_not_be_removed_are_not_in_the_way_of_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "rmtree", lambda _directory, **_how: None)
    store = ImageStore(tmp_path)
    image = sample(0)
    for _ in range(2):
        await store.ensure(image.digest, MemorySource(image))
        await store.remove(image.digest)
    assert store.list() == ()
