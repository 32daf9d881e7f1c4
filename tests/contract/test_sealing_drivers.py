"""The contract of sealers, on each driver and on wrong ones; and the file that holds the local key."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from shellwego.core.errors import UnavailableError
from shellwego.drivers.sealing.local import open_sealer
from shellwego.drivers.sealing.memory import MemorySealer
from shellwego.ports.sealing import Sealer
from tests.contract.sealing_contract import SealingContract


class TestMemorySealer(SealingContract):
    @pytest.fixture
    def sealer(self) -> Sealer:
        return MemorySealer()

    @pytest.fixture
    def other(self) -> Sealer:
        return MemorySealer()


class TestLocalSealer(SealingContract):
    @pytest.fixture
    def sealer(self, tmp_path: Path) -> Sealer:
        return open_sealer(tmp_path / "key")

    @pytest.fixture
    def other(self, tmp_path: Path) -> Sealer:
        return open_sealer(tmp_path / "other-key")


async def test_the_key_is_made_once_for_its_owner_alone_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "key"
    sealed = await open_sealer(path).seal(b"x", purpose="p", id_="i")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await open_sealer(path).unseal(sealed, purpose="p", id_="i") == b"x"


@pytest.mark.parametrize(
    ("content", "mode"), [(b"x" * 32, 0o644), (b"x" * 31, 0o600), (b"x" * 33, 0o600), (b"", 0o600)]
)
def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path, content: bytes, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(UnavailableError, match="readable by its owner alone") as caught:
        open_sealer(path)
    assert caught.value.resolution


class Unbound(MemorySealer):
    """Forgets for what it sealed."""

    async def unseal(self, sealed: str, *, purpose: str, id_: str) -> bytes:
        return next((value for _, _, value in self._kept.values()), b"")


class Plain:
    async def seal(self, value: bytes, *, purpose: str, id_: str) -> str:
        return value.decode()

    async def unseal(self, sealed: str, *, purpose: str, id_: str) -> bytes:
        return base64.b64decode(sealed)


async def test_the_contract_rejects_wrong_sealers() -> None:
    contract = SealingContract()
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        await contract.test_it_opens_for_its_purpose_and_row_alone(Unbound())
    with pytest.raises(AssertionError):
        await contract.test_what_is_sealed_tells_nothing_and_is_never_the_same(Plain())
