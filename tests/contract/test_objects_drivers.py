"""The contract of object stores on memory, a directory, and S3 as `moto` speaks it; and what the last two are asked of."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shellwego.core.backups import RepositoryPlace
from shellwego.core.errors import InvalidError, UnavailableError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.objects.choose import open_objects
from shellwego.drivers.objects.directory import DirectoryObjects
from shellwego.drivers.objects.memory import MemoryObjects
from shellwego.ports.objects import Objects
from tests.contract.objects_contract import ObjectsContract, every

SECRET = "wJalrXUtnFEMI-never-told"
CREDENTIALS = {"access_key_id": Sensitive.of("AKIDEXAMPLE"), "secret_access_key": Sensitive.of(SECRET)}
_BUCKETS = itertools.count()


class TestMemoryObjects(ObjectsContract):
    @pytest.fixture
    def objects(self) -> Objects:
        return MemoryObjects()


class TestDirectoryObjects(ObjectsContract):
    @pytest.fixture
    def objects(self, tmp_path: Path) -> Objects:
        return open_objects(RepositoryPlace(url=tmp_path.as_uri()))

    async def test_a_share_that_is_not_mounted_is_not_taken_for_an_empty_store(self, tmp_path: Path) -> None:
        objects = DirectoryObjects(tmp_path / "unmounted")
        for attempt in (objects.put("a", b""), objects.get("a"), objects.has("a"), objects.delete("a")):
            with pytest.raises(UnavailableError, match="there is no directory"):
                await attempt
        with pytest.raises(UnavailableError):
            await every(objects, "")
        assert not (tmp_path / "unmounted").exists()

    async def test_a_directory_that_cannot_be_listed_is_not_taken_for_an_empty_one(
        self, objects: Objects, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a/b", "c/d"):
            await objects.put(name, b"x")
        scan = os.scandir

        def stale(path: str | os.PathLike[str]) -> object:
            if os.fspath(path).endswith("/c"):
                raise OSError(errno.ESTALE, "Stale file handle")
            return scan(path)

        for prefix in ("", "c/"):
            with monkeypatch.context() as patched:
                patched.setattr(os, "scandir", stale)
                with pytest.raises(UnavailableError, match="Stale"):
                    await every(objects, prefix)

    async def test_what_was_broken_off_is_no_object(self, objects: Objects, tmp_path: Path) -> None:
        await objects.put("a/b", b"whole")
        (tmp_path / "a" / ".0123456789abcdef.part").write_bytes(b"half")
        assert await every(objects, "") == ["a/b"]

    async def test_it_is_for_our_user_only(self, objects: Objects, tmp_path: Path) -> None:
        await objects.put("a/b", b"x")
        assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "b")] == [0o700, 0o600]

    async def test_what_root_puts_for_another_is_that_ones(self, tmp_path: Path) -> None:
        await open_objects(RepositoryPlace(url=tmp_path.as_uri()), (65534, 65534)).put("a/b", b"x")
        assert [path.stat().st_uid for path in (tmp_path / "a", tmp_path / "a" / "b")] == [65534, 65534]


def test_a_share_that_hangs_keeps_no_other_work_waiting_and_not_the_end(tmp_path: Path) -> None:
    """A pipe that nobody writes to stands for the share: whoever opens it to read hangs."""
    hung = tmp_path / "hung"
    os.mkfifo(hung)
    objects = DirectoryObjects(tmp_path)
    released = threading.Event()

    def release() -> None:
        released.set()
        os.close(os.open(hung, os.O_RDWR))

    async def work_beside() -> None:
        await objects.put("whole", b"x")
        reading = [asyncio.create_task(objects.get("hung")) for _ in range(20)]
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "done") == "done"
            assert await objects.get("whole") == b"x"
        for task in reading:
            task.cancel()

    backstop = threading.Timer(20, release)
    backstop.start()
    try:
        asyncio.run(work_beside())
        assert not released.is_set(), "the loop has ended without those threads"
    finally:
        backstop.cancel()
        release()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server that nobody here wrote; returns its address."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - slow to import

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
async def place(s3: str) -> RepositoryPlace:
    import aiohttp  # noqa: PLC0415

    bucket = f"backups-{next(_BUCKETS)}"
    async with aiohttp.ClientSession() as session, session.put(f"{s3}/{bucket}") as answer:
        assert answer.status == 200
    return RepositoryPlace(url=f"s3://{bucket}/some/prefix", endpoint=s3, credentials=CREDENTIALS)


class TestS3Objects(ObjectsContract):
    @pytest.fixture
    def objects(self, place: RepositoryPlace) -> Objects:
        return open_objects(place)

    async def test_stores_under_two_prefixes_do_not_meet(self, objects: Objects, place: RepositoryPlace) -> None:
        await objects.put("a", b"x")
        other = open_objects(replace(place, url=place.url.replace("some/prefix", "some/prefi")))
        assert await every(other, "") == []
        assert not await other.has("a")

    @pytest.mark.nightly
    async def test_more_than_a_page_is_listed(self, objects: Objects) -> None:
        await asyncio.gather(*(objects.put(f"many/{number:04}", b"") for number in range(1050)))
        assert await every(objects, "many/") == [f"many/{number:04}" for number in range(1050)]

    async def test_a_bucket_that_is_missing_is_told_without_credentials(
        self, place: RepositoryPlace, caplog: pytest.LogCaptureFixture
    ) -> None:
        objects = open_objects(replace(place, url="s3://missing-bucket"))
        for attempt in (objects.get("a"), every(objects, "")):
            with pytest.raises(UnavailableError):
                await attempt
        with pytest.raises(UnavailableError) as caught:
            await objects.put("a", b"")
        assert caught.value.code == "objects-unavailable"
        assert SECRET not in f"{caught.value!r}{caught.value.message}{caplog.text}{place!r}"


class ForgetfulObjects(MemoryObjects):
    """Wrong: keeps the first that was put."""

    async def put(self, path: str, data: bytes) -> None:
        self.kept.setdefault(path, data)


class LooseObjects(MemoryObjects):
    """Wrong: a prefix may end in the midst of a name, and anything is a path."""

    async def paths(self, prefix: str) -> AsyncIterator[str]:
        for path in list(self.kept):
            if path.startswith(prefix.rstrip("/")):
                yield path

    async def put(self, path: str, data: bytes) -> None:
        self.kept[path] = data


Behaviour = Callable[[ObjectsContract, Objects], Awaitable[None]]


@pytest.mark.parametrize(
    ("wrong", "behaviour"),
    [
        (ForgetfulObjects, ObjectsContract.test_the_last_that_was_put_is_there),
        (LooseObjects, ObjectsContract.test_all_below_a_prefix_are_listed_and_no_others),
    ],
)
async def test_a_wrong_driver_is_rejected(wrong: type[MemoryObjects], behaviour: Behaviour) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await behaviour(ObjectsContract(), wrong())


@pytest.mark.parametrize(
    "place",
    [
        RepositoryPlace(url=""),
        RepositoryPlace(url="/srv/backups"),
        RepositoryPlace(url="file://host/srv"),
        RepositoryPlace(url="file:///"),
        RepositoryPlace(url="http://bucket/x"),
        RepositoryPlace(url="s3://[bucket", credentials=CREDENTIALS),
        RepositoryPlace(url="s3://Bucket_Name/", credentials=CREDENTIALS),
        RepositoryPlace(url="s3://bucket/../x", credentials=CREDENTIALS),
        RepositoryPlace(url="s3://bucket?x=1", credentials=CREDENTIALS),
        RepositoryPlace(url="s3://bucket"),
        RepositoryPlace(url="s3://bucket", credentials={**CREDENTIALS, "endpoint": Sensitive.of("x")}),
        RepositoryPlace(url="s3://bucket", credentials=CREDENTIALS, endpoint="http://169.254.169.254"),
        RepositoryPlace(url="s3://bucket", credentials=CREDENTIALS, endpoint="ftp://one.example"),
        RepositoryPlace(url="s3://bucket", credentials=CREDENTIALS, region="eu west"),
    ],
)
def test_a_place_that_cannot_be_one_is_refused_at_once(place: RepositoryPlace) -> None:
    with pytest.raises(InvalidError) as caught:
        open_objects(place)
    assert caught.value.code in ("bad-repository", "bad-object-path")
    assert SECRET not in str(caught.value)


async def test_a_store_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta  # noqa: PLC0415

    from shellwego.drivers.objects import s3  # noqa: PLC0415

    monkeypatch.setattr(s3, "_ALTOGETHER", timedelta(seconds=0.2))
    endpoint = "http://127.0.0.1:1"
    objects = open_objects(RepositoryPlace(url="s3://bucket", endpoint=endpoint, credentials=CREDENTIALS))
    with pytest.raises(UnavailableError) as caught:
        await objects.get("a")
    assert SECRET not in caught.value.message
    assert os.environ.get("AWS_SECRET_ACCESS_KEY") is None
