"""Which images a node has: those that it gave out last, as it tells them."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.images.store import ImageStore
from tests.contract.images_samples import MemorySource, Sample
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
