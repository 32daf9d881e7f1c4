"""Logins for registries: read as root, in Docker's form, never shown."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from shellwego.boot.preflight import PreflightError
from shellwego.boot.registries import Login, read_logins


def write(path: Path, document: object, mode: int = 0o600) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)
    return path


def packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_both_forms_of_a_login_are_read(tmp_path: Path) -> None:
    auths = {
        "registry.example": {"auth": packed("user:pass:word")},
        "https://other.example/v1/": {"username": "me", "password": "secret"},
    }
    logins = read_logins(write(tmp_path / "auth.json", {"auths": auths}))
    assert logins == {"registry.example": Login("user", "pass:word"), "other.example": Login("me", "secret")}


def test_a_password_is_never_shown() -> None:
    assert "secret" not in repr(Login("me", "secret"))


@pytest.mark.parametrize(
    "document",
    ["no json", [], {"auths": []}, {"auths": {"a.example": {}}}, {"auths": {"a.example": {"auth": "!"}}}],
)
def test_a_file_that_makes_no_sense_is_refused_without_telling_what_it_holds(tmp_path: Path, document: object) -> None:
    path = write(tmp_path / "auth.json", document)
    with pytest.raises(PreflightError) as refused:
        read_logins(path)
    assert str(path) in refused.value.message
    assert refused.value.resolution


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="others"):
        read_logins(write(tmp_path / "auth.json", {"auths": {}}, mode=0o644))


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(PreflightError):
        read_logins(tmp_path / "absent.json")
