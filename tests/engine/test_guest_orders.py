"""What the host orders about volumes, against the real C loop: the machine beneath it only says what it was asked."""

from __future__ import annotations

import pytest

from plasmavmc.errors import GuestError
from plasmavmc.types import MIB
from tests.engine.guest_loopback import Guest


async def test_a_volume_is_frozen_thawed_and_grown_as_the_host_says(guest: Guest) -> None:
    channel = await guest.start("/bin/sleep", "60")
    await channel.freeze_volume(2)
    await channel.thaw_volume(2)
    await channel.grow_volume(3, 5 << 40)
    await channel.stop("SIGKILL", 0)
    _, errors = await guest.process.communicate()
    assert errors.decode().splitlines() == [
        "order 1 disk 2 size 0",
        "order 2 disk 2 size 0",
        f"order 3 disk 3 size {5 << 40}",
        "finished",
    ]


async def test_what_a_guest_cannot_do_with_a_volume_is_told(guest: Guest) -> None:
    channel = await guest.start("/bin/sleep", "60")
    with pytest.raises(GuestError) as caught:
        await channel.grow_volume(9, MIB)
    assert caught.value.code == "volume-no-volume"
    with pytest.raises(GuestError) as caught:
        await channel.thaw_volume(2)
    assert caught.value.code == "volume-not-frozen"


async def test_one_volume_is_frozen_at_a_time(guest: Guest) -> None:
    channel = await guest.start("/bin/sleep", "60")
    await channel.freeze_volume(2)
    with pytest.raises(GuestError) as caught:
        await channel.freeze_volume(3)
    assert caught.value.code == "volume-not-frozen"
    await channel.thaw_volume(2)
    await channel.freeze_volume(3)


async def test_a_host_that_returns_may_thaw_what_was_frozen_before(guest: Guest) -> None:
    channel = await guest.start("/bin/sleep", "60")
    await channel.freeze_volume(2)
    await channel.aclose()
    await (await guest.open()).thaw_volume(2)
