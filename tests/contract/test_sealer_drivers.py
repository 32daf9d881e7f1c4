"""The sealer contract on its drivers, and wrong drivers that it rejects."""

from __future__ import annotations

import base64
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shellwego.core.errors import ConflictError
from shellwego.drivers.sealer.keyfile import open_keyfile
from shellwego.drivers.sealer.memory import MemorySealer
from shellwego.ports.sealer import Sealer
from tests.contract.sealer_contract import SealerContract


class TestMemorySealer(SealerContract):
    @pytest.fixture
    def sealer(self) -> Sealer:
        return MemorySealer()


class TestKeyfileSealer(SealerContract):
    @pytest.fixture
    def sealer(self, tmp_path: Path) -> Sealer:
        return open_keyfile(tmp_path / "key")


async def test_the_key_stays_and_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    sealed = await open_keyfile(path).seal("x", "whk_1")
    assert await open_keyfile(path).unseal(sealed, "whk_1") == "x"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.with_name("key.new").exists()
    path.unlink()
    with pytest.raises(ConflictError):
        await open_keyfile(path).unseal(sealed, "whk_1")


def test_a_file_that_holds_no_key_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"short")
    with pytest.raises(ConflictError, match="does not hold a key"):
        open_keyfile(path)
    assert path.read_bytes() == b"short"


class OpenSealer:
    """Wrong: seals nothing."""

    async def seal(self, secret: str, subject: str) -> str:
        return base64.b64encode(secret.encode()).decode()

    async def unseal(self, sealed: str, subject: str) -> str:
        return base64.b64decode(sealed).decode()


class UnboundSealer(MemorySealer):
    """Wrong: opens for anybody."""

    async def seal(self, secret: str, subject: str) -> str:
        return await super().seal(secret, "")

    async def unseal(self, sealed: str, subject: str) -> str:
        return await super().unseal(sealed, "")


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (OpenSealer, SealerContract.test_what_is_stored_shows_nothing_of_the_secret),
        (UnboundSealer, SealerContract.test_it_opens_for_no_other_subject),
    ],
)
async def test_a_wrong_driver_is_rejected(
    wrong: Callable[[], Sealer], behaviour: Callable[[SealerContract, Sealer], Awaitable[None]]
) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await behaviour(SealerContract(), wrong())
