"""The contract of a KMS on keys that the host keeps: in a file, sealed or not, or given at the start."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms import keyfile
from shellwego.drivers.kms.keyfile import is_sealed
from shellwego.drivers.kms.local import FileKms, GivenKms
from shellwego.ports.kms import Kms, RotatingKms
from tests.contract.kms_contract import CONTEXT, KEY, KmsContract, RotatingKmsContract

PASSPHRASE = Sensitive.of("correct horse")
FIRST, SECOND = Sensitive(b"a" * 32), Sensitive(b"b" * 32)


@pytest.fixture(autouse=True)
def cheap_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a passphrase costs is not what is tested."""
    monkeypatch.setattr(keyfile, "_COST", 1 << 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "master-keys.json"


class TestUnsealedFile(RotatingKmsContract):
    @pytest.fixture
    def kms(self, path: Path) -> Kms:
        return FileKms.open(path)


class TestSealedFile(RotatingKmsContract):
    @pytest.fixture
    def kms(self, path: Path) -> Kms:
        return FileKms.open(path, PASSPHRASE)


class TestGivenKeys(KmsContract):
    @pytest.fixture
    def kms(self) -> Kms:
        return GivenKms([FIRST])


class TestTheFile:
    @pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
    async def test_keys_are_there_after_a_restart_and_a_rotation(
        self, path: Path, passphrase: Sensitive | None
    ) -> None:
        kms: RotatingKms = FileKms.open(path, passphrase)
        old = await kms.wrap(KEY, CONTEXT)
        await kms.rotate()
        new = await kms.wrap(KEY, CONTEXT)
        again = FileKms.open(path, passphrase)
        assert await again.unwrap(old, CONTEXT) == await again.unwrap(new, CONTEXT) == KEY
        assert await again.current() == new.master_key

    def test_it_is_for_its_owner_only(self, path: Path) -> None:
        asyncio.run(FileKms.open(path).rotate())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    def test_a_sealed_one_shows_no_key(self, path: Path) -> None:
        FileKms.open(path)
        (key,) = json.loads(path.read_text())["keys"].values()
        assert not is_sealed(path)
        FileKms.open(path, PASSPHRASE)
        assert is_sealed(path)
        assert key not in path.read_text()

    async def test_an_unsealed_one_is_sealed_once_a_passphrase_is_given_and_keeps_its_keys(self, path: Path) -> None:
        old = await FileKms.open(path).wrap(KEY, CONTEXT)
        assert await FileKms.open(path, PASSPHRASE).unwrap(old, CONTEXT) == KEY

    def test_a_sealed_one_does_not_open_without_its_passphrase(self, path: Path) -> None:
        FileKms.open(path, PASSPHRASE)
        with pytest.raises(InvalidError) as refused:
            FileKms.open(path)
        assert refused.value.code == "passphrase-needed"

    def test_another_passphrase_is_told_as_such(self, path: Path) -> None:
        FileKms.open(path, PASSPHRASE)
        with pytest.raises(InvalidError) as refused:
            FileKms.open(path, Sensitive.of("wrong horse"))
        assert refused.value.code == "wrong-passphrase"

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{",
            "[]",
            "{}",
            '{"format": 1}',
            '{"format": 1, "salt": "", "current": "x", "keys": {}}',
            '{"format": 1, "salt": "", "current": "x", "keys": {"x": "AAAA"}}',
            '{"format": 1, "keys": {"x": "%"}}',
        ],
    )
    def test_a_damaged_one_is_refused_and_left_as_it_is(self, path: Path, content: str) -> None:
        path.write_text(content)
        with pytest.raises(InvalidError) as refused:
            FileKms.open(path)
        assert refused.value.code == "bad-key-file"
        assert path.read_text() == content

    async def test_the_keys_of_another_installation_are_told_as_missing(self, path: Path) -> None:
        wrapped = await FileKms.open(path).wrap(KEY, CONTEXT)
        with pytest.raises(UnavailableError):
            await FileKms.open(path.with_name("other.json")).unwrap(wrapped, CONTEXT)


class TestGiving:
    async def test_the_first_key_is_the_current_one_and_the_others_open(self) -> None:
        old = await GivenKms([FIRST]).wrap(KEY, CONTEXT)
        both = GivenKms([SECOND, FIRST])
        assert await both.current() != old.master_key
        assert await both.unwrap(old, CONTEXT) == KEY

    async def test_a_key_that_is_not_given_any_more_is_told_as_missing(self) -> None:
        old = await GivenKms([FIRST]).wrap(KEY, CONTEXT)
        with pytest.raises(UnavailableError):
            await GivenKms([SECOND]).unwrap(old, CONTEXT)

    @pytest.mark.parametrize("keys", [[], [Sensitive(b"short")]])
    def test_what_is_no_key_is_refused(self, keys: list[Sensitive]) -> None:
        with pytest.raises(InvalidError):
            GivenKms(keys)
