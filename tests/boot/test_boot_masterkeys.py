"""Where the master key comes from: read as root, never shown, and taken out of the environment."""

from __future__ import annotations

import asyncio
import base64
import errno
import time
from pathlib import Path

import pytest

from shellwego.boot.hostchecks import check_host, is_encrypted
from shellwego.boot.masterkeys import KEY_DIRECTORY, KEY_FILE, KmsSource, read_source
from shellwego.boot.preflight import PreflightError
from shellwego.boot.settings import UpSettings
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.kms.aws import AwsKms
from shellwego.drivers.kms.local import FileKms, GivenKms
from shellwego.drivers.kms.vault import VaultKms

KEY = base64.b64encode(b"k" * 32).decode()
OTHER = base64.b64encode(b"o" * 32).decode()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_nothing_given_means_a_key_file_without_a_seal(tmp_path: Path) -> None:
    source = read_source(UpSettings(), {})
    assert source == KmsSource()
    assert isinstance(source.open(tmp_path, time.time), FileKms)


def test_a_file_comes_before_a_credential_and_that_before_the_environment(tmp_path: Path) -> None:
    environment = {"SHELLWEGO_MASTER_PASSPHRASE": "of the environment", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_source(UpSettings(), dict(environment)).passphrase == Sensitive.of("of the environment")
    write(tmp_path / "shellwego.master-passphrase", "of the unit\n")
    assert read_source(UpSettings(), dict(environment)).passphrase == Sensitive.of("of the unit")
    named = UpSettings(master_passphrase_file=write(tmp_path / "named", "of the file"))
    assert read_source(named, environment).passphrase == Sensitive.of("of the file")
    assert "SHELLWEGO_MASTER_PASSPHRASE" not in environment


def test_keys_are_given_one_a_line_or_by_commas_and_the_first_is_current(tmp_path: Path) -> None:
    for text in (f"{KEY}\n{OTHER}\n", f"{KEY},{OTHER}"):
        source = read_source(UpSettings(), {"SHELLWEGO_MASTER_KEYS": text})
        assert source.keys == (Sensitive(b"k" * 32), Sensitive(b"o" * 32))
    assert isinstance(source.open(tmp_path, time.time), GivenKms)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["x", KEY + "AAAA", f"{KEY} {KEY[:-8]}", "ключ"])
def test_what_is_no_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(PreflightError) as refused:
        read_source(UpSettings(), {"SHELLWEGO_MASTER_KEYS": text})
    assert KEY[:10] not in refused.value.message
    assert "ключ" not in refused.value.message


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "passphrase", "x", mode=0o640)
    with pytest.raises(PreflightError) as refused:
        read_source(UpSettings(master_passphrase_file=path), {})
    assert refused.value.resolution == f"chmod 600 {path}"


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_file_that_holds_nothing_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "empty", "\n")
    with pytest.raises(PreflightError):
        read_source(UpSettings(master_keys_file=tmp_path / name), {})


def test_a_device_is_encrypted_where_it_or_all_below_it_is_dm_crypt(tmp_path: Path) -> None:
    def device(name: str, uuid: str = "", *, on: str = "") -> Path:
        made = tmp_path / name
        (made / "dm").mkdir(parents=True)
        (made / "slaves").mkdir()
        if uuid:
            (made / "dm" / "uuid").write_text(uuid)
        if on:
            (made / "slaves" / on).symlink_to(tmp_path / on)
        return made

    plain, luks = device("sda"), device("dm-0", "CRYPT-LUKS2-1f-cr")
    assert [is_encrypted(each) for each in (plain, luks, tmp_path / "none")] == [False, True, False]
    assert is_encrypted(device("dm-1", "LVM-x", on="dm-0"))
    assert not is_encrypted(device("dm-2", "LVM-y", on="sda"))


def test_both_kinds_together_are_refused() -> None:
    with pytest.raises(PreflightError):
        read_source(UpSettings(), {"SHELLWEGO_MASTER_KEYS": KEY, "SHELLWEGO_MASTER_PASSPHRASE": "x"})


def test_nothing_shows_what_was_read() -> None:
    source = read_source(UpSettings(), {"SHELLWEGO_MASTER_KEYS": KEY})
    assert repr(source) == "KmsSource(remote=None)"


@pytest.mark.parametrize(("passphrase", "state"), [(None, "warn"), (Sensitive.of("correct horse battery"), "ok")])
def test_doctor_tells_of_a_key_file_without_a_seal(tmp_path: Path, passphrase: Sensitive | None, state: str) -> None:
    def told() -> tuple[str, str]:
        settings = UpSettings(data_dir=tmp_path)
        (finding,) = [each for each in check_host(settings) if each.check == "master key"]
        return finding.state.value, finding.remedy

    assert told() == ("ok", "")
    (tmp_path / KEY_DIRECTORY).mkdir()
    FileKms.open(tmp_path / KEY_DIRECTORY / KEY_FILE, passphrase)
    assert told()[0] == state
    write(tmp_path / KEY_DIRECTORY / KEY_FILE, "{")
    assert told()[0] == "fail"


def test_who_works_beside_the_platform_changes_nothing_of_its_key_file(tmp_path: Path) -> None:
    asyncio.run(FileKms.open(tmp_path / KEY_FILE).rotate())
    before = (tmp_path / KEY_FILE).read_bytes()
    kms = KmsSource(passphrase=Sensitive.of("a new one")).open_existing(tmp_path, time.time)
    assert asyncio.run(kms.current()) == asyncio.run(FileKms.open(tmp_path / KEY_FILE).current())
    assert (tmp_path / KEY_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_a_key_file_that_the_platform_may_not_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(PreflightError) as refused:
        KmsSource().open(tmp_path, time.time)
    assert f"{tmp_path / KEY_FILE}: Permission denied" in refused.value.message
    assert str(tmp_path) in refused.value.resolution


def test_a_kms_elsewhere_is_made_of_its_settings_and_its_credentials(tmp_path: Path) -> None:
    vault = UpSettings(kms="vault", kms_url="https://vault.example:8200", kms_key="transit/shellwego")
    source = read_source(vault, {"SHELLWEGO_KMS_CREDENTIALS": "hvs.token"})
    assert isinstance(source.open(tmp_path, time.time), VaultKms)
    profile = "[default]\naws_access_key_id = AKID\naws_secret_access_key = sec%ret\n"
    aws = UpSettings(kms="aws", kms_key="alias/shellwego", kms_region="eu-central-1")
    source = read_source(aws, {"SHELLWEGO_KMS_CREDENTIALS": profile})
    assert isinstance(source.open(tmp_path, time.time), AwsKms)
    assert "sec%ret" not in repr(source)


@pytest.mark.parametrize("credentials", ["", "sec%ret", "[default]\nsec%ret = 1\n", "[other]\nsec%ret = 1"])
def test_credentials_that_are_none_are_refused_and_not_repeated(credentials: str) -> None:
    settings = UpSettings(kms="aws", kms_key="alias/shellwego", kms_region="eu-central-1")
    with pytest.raises(PreflightError) as refused:
        read_source(settings, {"SHELLWEGO_KMS_CREDENTIALS": credentials})
    assert "sec%ret" not in refused.value.message
