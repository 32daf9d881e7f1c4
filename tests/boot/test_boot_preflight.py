"""What root does with the data directory, which belongs to the unprivileged user: it gives nothing of others away, follows
nothing that was planted there, and believes only what it wrote itself."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plasmavmc.host import installation
from shellwego.boot.credentials import TOKEN_FILE, admin_token, write_contexts
from shellwego.boot.preflight import Installation, PreflightError, open_installation
from shellwego.boot.settings import UpSettings
from shellwego.client.context import Context, load, save

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, as only root can")

USER, GROUP = 54_321, 54_321
Plant = Callable[[Path, Path], None]


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(installation, "check_user", lambda: (USER, GROUP))


def opened(directory: Path) -> Installation:
    found = open_installation(UpSettings(data_dir=directory))
    os.close(found.lock)
    return found


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_data_directory_is_found_again_as_it_was_left(tmp_path: Path) -> None:
    first = opened(tmp_path / "data")
    token = admin_token(first)
    second = opened(tmp_path / "data")
    assert (second.id, admin_token(second)) == (first.id, token)
    assert (tmp_path / "data").stat().st_uid == USER


def test_a_directory_with_the_files_of_others_is_not_given_away(tmp_path: Path) -> None:
    """`--data-dir /etc` is a slip of the hand, or a link that somebody laid."""
    foreign = tmp_path / "etc"
    foreign.mkdir()
    (foreign / "passwd").write_text("root")
    (tmp_path / "link").symlink_to(foreign)
    for place in (foreign, tmp_path / "link"):
        with pytest.raises(PreflightError) as caught:
            opened(place)
        assert caught.value.code == "foreign-directory"
    assert foreign.stat().st_uid == 0
    assert [path.name for path in foreign.iterdir()] == ["passwd"]


def test_a_directory_of_the_user_that_holds_something_else_is_not_used(tmp_path: Path) -> None:
    place = tmp_path / "checkout"
    (place / ".git").mkdir(parents=True)
    os.chown(place, USER, GROUP)
    with pytest.raises(PreflightError) as caught:
        opened(place)
    assert caught.value.code == "foreign-directory"
    assert [path.name for path in place.iterdir()] == [".git"]


def test_a_first_start_that_ended_early_can_be_repeated(tmp_path: Path) -> None:
    first = opened(tmp_path / "data")
    (first.data_dir / "installation").unlink()
    opened(tmp_path / "data")


@contextmanager
def failing_disk(*, names: bool) -> Iterator[None]:
    """One that brings nothing more of files, or of their names, to where it outlives a power cut."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == names:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("names", [False, True])
def test_id_and_token_are_on_the_disk_before_they_are_used(tmp_path: Path, names: bool) -> None:
    """Else a power cut leaves an empty file, which is not believed, and nothing starts any more."""
    with failing_disk(names=names), pytest.raises(PreflightError, match="cannot be written"):
        opened(tmp_path / "first")
    assert (tmp_path / "first" / "installation").exists() == names
    second = opened(tmp_path / "second")
    with failing_disk(names=names), pytest.raises(OSError, match="Input/output"):
        admin_token(second)
    assert (second.data_dir / TOKEN_FILE).exists() == names
    assert admin_token(second) == admin_token(second)


def test_a_first_start_that_ended_as_it_wrote_the_id_can_be_repeated(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    (place / ".installation.new").touch()
    os.chown(place, USER, GROUP)
    assert opened(place).id == opened(place).id


def test_an_empty_directory_is_taken_over_and_shut(tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    (place / "lost+found").mkdir(parents=True)
    place.chmod(0o777)
    opened(place)
    assert (place.stat().st_uid, mode_of(place)) == (USER, 0o700)
    place.chmod(0o775)
    opened(place)
    assert mode_of(place) == 0o700


def linked(path: Path, secret: Path) -> None:
    path.symlink_to(secret)
    os.chown(path, USER, GROUP, follow_symlinks=False)


def hard_linked(path: Path, secret: Path) -> None:
    os.link(secret, path)


def copied(path: Path, _secret: Path) -> None:
    path.write_text("../../elsewhere\n")
    os.chown(path, USER, GROUP)


def piped(path: Path, _secret: Path) -> None:
    os.mkfifo(path)
    os.chown(path, USER, GROUP)


PLANTED = [(name, plant) for name in ("installation", TOKEN_FILE) for plant in (linked, hard_linked, copied, piped)]
PLANTED += [("lock", plant) for plant in (linked, hard_linked, piped)]  # what it holds means nothing


@pytest.mark.parametrize(("name", "plant"), PLANTED)
def test_what_the_unprivileged_user_planted_leads_root_nowhere(tmp_path: Path, name: str, plant: Plant) -> None:
    data = tmp_path / "data"
    admin_token(opened(data))
    secret = tmp_path / "shadow"
    secret.write_text("root:secret")
    (data / name).unlink()
    plant(data / name, secret)
    with pytest.raises(PreflightError) as caught:
        admin_token(opened(data))
    assert caught.value.code == "foreign-file"
    assert "secret" not in caught.value.message
    assert (secret.stat().st_uid, secret.read_text()) == (0, "root:secret")


def test_the_contexts_of_platforms_whose_address_this_one_has_now_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SUDO_UID", raising=False)
    path = tmp_path / "shellwego" / "config.toml"
    here, other = UpSettings(), UpSettings(api_port=7081)
    gone = write_contexts(here, opened(tmp_path / "gone"), "pat_1")
    beside = write_contexts(other, opened(tmp_path / "beside"), "pat_2")
    save(path, load(path).put(Context(name="mine", api_url=here.api_url), make_current=True))
    name = write_contexts(here, opened(tmp_path / "data"), "pat_3")
    known = load(path)
    assert gone not in known.contexts
    assert set(known.contexts) == {"local", "mine", beside, name}
    assert known.contexts["local"].token == "pat_3"


@pytest.mark.parametrize("caller", ["nobody", "54329", "9" * 40])
def test_a_caller_whom_the_host_does_not_know_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caller: str
) -> None:
    monkeypatch.setenv("SUDO_UID", caller)
    with pytest.raises(PreflightError) as caught:
        write_contexts(UpSettings(), opened(tmp_path / "data"), "pat_secret")
    assert caught.value.code == "no-caller"
