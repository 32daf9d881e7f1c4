"""What every engine that keeps volumes must do with snapshots that go from one to another."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from shellwego.core.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.ports.engine import VolumeEngine
from tests.contract.engine_contract import EngineUnderTest, MakeEngine, running, see
from tests.contract.volume_engine_contract import SIZE, content, mounting, only, volumes_of

PAGE = 4096
KEY = Sensitive(b"k" * 32)
TEXTS = {"snap_1": b"one and the same beginning", "snap_2": b"one and the other", "snap_3": b"something else, at last"}


async def pieces(data: bytes) -> AsyncGenerator[bytes]:
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


async def sent(engine: VolumeEngine, snapshot_id: str, since: str = "") -> bytes:
    return b"".join([part async for part in engine.send_snapshot(snapshot_id, since)])


async def held(engine: VolumeEngine, snapshot_id: str) -> dict[int, bytes]:
    """What a snapshot holds, as it is stored: all pages that are not zeros."""
    async with engine.read_snapshot(snapshot_id) as source:
        extents = [(at, data) async for at, data in content(source)]
    pages = {at + page: data[page : page + PAGE] for at, data in extents for page in range(0, len(data), PAGE)}
    return {at: page.rstrip(b"\0") for at, page in pages.items() if page.strip(b"\0")}


async def kept(engine: VolumeEngine) -> set[str]:
    return {each.snapshot_id for each in (await only(engine)).snapshots}


async def written(under_test: EngineUnderTest) -> VolumeEngine:
    """A volume that was written, and kept in a snapshot each time."""
    engine = volumes_of(under_test)
    assert under_test.write is not None
    await engine.create_volume("vol_1", SIZE)
    for snapshot_id, text in TEXTS.items():
        await under_test.write("vol_1", text)
        await engine.snapshot_volume("vol_1", snapshot_id, freeze=False)
    return engine


class VolumeSendingContract:
    """Subclass it with fixtures `make` and `elsewhere`: two engines that know nothing of each other."""

    async def test_snapshots_arrive_one_on_top_of_the_other_and_each_is_what_it_was(
        self, make: MakeEngine, elsewhere: MakeEngine
    ) -> None:
        here, there = await written(await make()), volumes_of(await elsewhere())
        before = ""
        for snapshot_id in TEXTS:
            stream = pieces(await sent(here, snapshot_id, before))
            assert len(await there.receive_snapshot("vol_1", snapshot_id, stream, before)) == 64
            before = snapshot_id
        assert await kept(there) == set(TEXTS)
        assert await held(there, "snap_1") != await held(there, "snap_2")
        for each in TEXTS:
            assert await held(there, each) == await held(here, each)
        await there.restore_volume("vol_1", "snap_1")
        await there.snapshot_volume("vol_1", "snap_now", freeze=False)
        assert await held(there, "snap_now") == await held(here, "snap_1")

    async def test_one_in_between_may_go_and_what_follows_comes_on_the_youngest(
        self, make: MakeEngine, elsewhere: MakeEngine
    ) -> None:
        here, there = await written(await make()), volumes_of(await elsewhere())
        await there.receive_snapshot("vol_1", "snap_1", pieces(await sent(here, "snap_1")))
        await there.receive_snapshot("vol_1", "snap_2", pieces(await sent(here, "snap_2", "snap_1")), "snap_1")
        await there.delete_snapshot("snap_2")
        await here.delete_snapshot("snap_2")
        await there.receive_snapshot("vol_1", "snap_3", pieces(await sent(here, "snap_3", "snap_1")), "snap_1")
        await there.delete_snapshot("snap_1")
        assert await kept(there) == {"snap_3"}
        assert await held(there, "snap_3") == await held(here, "snap_3")

    async def test_what_breaks_off_or_is_damaged_leaves_what_was_there_and_can_come_again(
        self, make: MakeEngine, elsewhere: MakeEngine
    ) -> None:
        here, there = await written(await make()), volumes_of(await elsewhere())
        whole, more = await sent(here, "snap_1"), await sent(here, "snap_2", "snap_1")
        with pytest.raises(UnavailableError) as cut:
            await there.receive_snapshot("vol_1", "snap_1", pieces(whole[:-5]))
        assert cut.value.code == "stream-cut"
        assert await there.volumes() == ()
        await there.receive_snapshot("vol_1", "snap_1", pieces(whole))
        with pytest.raises(UnavailableError):
            await there.receive_snapshot("vol_1", "snap_2", pieces(more[:-5]), "snap_1")
        with pytest.raises(InvalidError):
            await there.receive_snapshot("vol_1", "snap_2", pieces(more[:-1] + bytes([more[-1] ^ 1])), "snap_1")
        assert await kept(there) == {"snap_1"}
        await there.receive_snapshot("vol_1", "snap_2", pieces(more), "snap_1")
        again = await there.receive_snapshot("vol_1", "snap_2", pieces(b"is not read"), "snap_1")
        assert again == ""
        assert await held(there, "snap_2") == await held(here, "snap_2")

    async def test_what_is_encrypted_goes_without_its_key_and_opens_with_it_alone(
        self, make: MakeEngine, elsewhere: MakeEngine
    ) -> None:
        here, there = volumes_of(await make()), volumes_of(await elsewhere())
        await here.create_volume("vol_1", SIZE, KEY)
        await here.snapshot_volume("vol_1", "snap_1", freeze=False)
        await there.receive_snapshot("vol_1", "snap_1", pieces(await sent(here, "snap_1")))
        found = await only(there)
        assert (found.size_bytes, found.encrypted, found.locked) == (SIZE, True, True)
        with pytest.raises(ConflictError) as caught:
            await there.unlock_volume("vol_1", Sensitive(b"o" * 32))
        assert caught.value.code == "wrong-key"
        await there.unlock_volume("vol_1", KEY)
        assert not (await only(there)).locked

    async def test_what_does_not_go_together_is_refused(self, make: MakeEngine, elsewhere: MakeEngine) -> None:
        here, there = await written(await make()), volumes_of(await elsewhere())
        for snapshot_id, since in (("snap_x", ""), ("snap_2", "snap_x")):
            with pytest.raises(NotFoundError):
                await sent(here, snapshot_id, since)
        more = await sent(here, "snap_2", "snap_1")
        with pytest.raises(NotFoundError):
            await there.receive_snapshot("vol_1", "snap_2", pieces(more), "snap_1")
        with pytest.raises(InvalidError):
            await there.receive_snapshot("vol_1", "snap_2", pieces(more))
        assert await there.volumes() == ()

    async def test_nothing_is_received_into_a_volume_that_a_vm_has(
        self, make: MakeEngine, elsewhere: MakeEngine
    ) -> None:
        here, tested = await written(await make()), await elsewhere()
        there = volumes_of(tested)
        await there.receive_snapshot("vol_1", "snap_1", pieces(await sent(here, "snap_1")))
        await tested.engine.run(mounting(tested, "a"))
        await see(tested.engine, "vm_a_1", running)
        more = await sent(here, "snap_2", "snap_1")
        with pytest.raises(ConflictError) as caught:
            await there.receive_snapshot("vol_1", "snap_2", pieces(more), "snap_1")
        assert caught.value.code == "volume-held"
