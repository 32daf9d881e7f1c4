"""Where the operator has backups lie: what is taken, from where, and what is refused before the platform starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from shellwego.boot.configfile import config_file_values
from shellwego.boot.preflight import PreflightError
from shellwego.boot.repository import read_repository
from shellwego.boot.settings import UpSettings
from shellwego.core.errors import InvalidError

PROFILE = "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = never-told\n"
S3 = {"backups_url": "s3://bucket/prefix", "backups_endpoint": "https://s3.example", "backups_region": "eu-1"}


def test_without_a_url_there_are_no_backups() -> None:
    assert read_repository(UpSettings(), {}) is None


def test_a_directory_needs_no_credentials(tmp_path: Path) -> None:
    place = read_repository(UpSettings(backups_url=tmp_path.as_uri()), {})
    assert place is not None
    assert (place.url, place.credentials) == (tmp_path.as_uri(), {})


@pytest.mark.parametrize("way", ["file", "systemd", "environment"])
def test_credentials_come_from_a_file_systemd_or_the_environment_and_are_not_shown(tmp_path: Path, way: str) -> None:
    file = tmp_path / "shellwego.backups-credentials"
    file.write_text(PROFILE)
    file.chmod(0o600)
    settings = UpSettings(**S3, backups_credentials_file=file if way == "file" else None)  # type: ignore[arg-type]
    given = {
        "systemd": {"CREDENTIALS_DIRECTORY": str(tmp_path)},
        "environment": {"SHELLWEGO_BACKUPS_CREDENTIALS": PROFILE},
    }
    environment = given.get(way, {})
    place = read_repository(settings, environment)
    assert place is not None
    assert place.credentials["secret_access_key"].reveal_text() == "never-told"
    assert (place.endpoint, place.region) == ("https://s3.example", "eu-1")
    assert "never-told" not in repr(place)
    assert "SHELLWEGO_BACKUPS_CREDENTIALS" not in environment


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text(PROFILE)
    file.chmod(0o644)
    with pytest.raises(PreflightError) as caught:
        read_repository(UpSettings(**S3, backups_credentials_file=file), {})  # type: ignore[arg-type]
    assert "never-told" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"backups_url": "/srv/backups"},
        {"backups_url": "s3://bucket"},
        {"backups_url": "s3://bucket", "backups_endpoint": "http://10.0.0.1"},
    ],
)
def test_what_can_be_no_repository_is_refused_at_the_start(changes: dict[str, str]) -> None:
    with pytest.raises(InvalidError):
        read_repository(UpSettings(**changes), {})  # type: ignore[arg-type]


def test_the_configuration_file_has_a_table_for_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[backups]\nurl = "file:///srv"\nregion = "eu-1"\n')
    assert config_file_values(file) == {"backups_url": "file:///srv", "backups_region": "eu-1"}
    for wrong in ('[backups]\nsecret = "x"\n', '[up]\nbackups_url = "file:///srv"\n'):
        file.write_text(wrong)
        with pytest.raises(InvalidError):
            config_file_values(file)
