"""Images over the API: uploads in parts, loading, registering, deleting."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from structlog.testing import capture_logs

from shellwego.api.rest import spool
from shellwego.api.rest.middleware import MAX_BODY
from shellwego.drivers.clock.virtual import VirtualClock
from tests.api.api_world import FOREIGN, OWNER, VIEWER, Answer, World

GIB = 1024**3


class DiskUsage(NamedTuple):
    """As `shutil.disk_usage` tells it."""

    total: int
    used: int
    free: int


def docker_save(*images: tuple[str, ...], content: bytes = b"layer") -> bytes:
    """A tar as `docker save` writes it, one image for each tuple of names."""
    files: dict[str, bytes] = {}
    manifest = []
    for number, names in enumerate(images):
        config = json.dumps({"config": {"ExposedPorts": {"8080/tcp": {}}}, "number": number}).encode()
        files[f"{number}.json"], files[f"{number}.tar"] = config, content
        manifest.append({"Config": f"{number}.json", "Layers": [f"{number}.tar"], "RepoTags": list(names)})
    files["manifest.json"] = json.dumps(manifest).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


async def send_part(world: World, upload: str, part: bytes, first: int, **options: Any) -> Answer:
    headers = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/*", "Content-Type": "application/octet-stream"}
    return await world.call("PATCH", f"/v1/images/uploads/{upload}", raw=part, headers=headers, **options)


async def upload_tar(world: World, data: bytes, part_size: int = 1 << 16, query: str = "") -> str:
    """Upload in parts; returns the path of the upload with its digest, ready to be finished."""
    upload = (await world.made(f"/v1/images/uploads{query}"))["id"]
    for start in range(0, len(data), part_size):
        answer = await send_part(world, upload, data[start : start + part_size], start)
        assert answer.json["offset"] == min(start + part_size, len(data))
    return f"/v1/images/uploads/{upload}?digest=sha256:{hashlib.sha256(data).hexdigest()}"


async def test_a_part_that_must_be_held_in_memory_is_bounded_as_every_body(world: World) -> None:
    """To tell two requests with one key apart, the server reads the whole body first."""
    path = f"/v1/images/uploads/{(await world.made('/v1/images/uploads'))['id']}"
    part = b"x" * (MAX_BODY + 1)
    headers = {"Content-Range": f"bytes 0-{MAX_BODY}/*", "Content-Type": "application/octet-stream"}
    refused = await world.call("PATCH", path, raw=part, headers={**headers, "Idempotency-Key": "mine"})
    assert refused.status == 413
    assert (await world.call("PATCH", path, raw=part, headers=headers)).status == 200


async def test_an_uploaded_tar_is_loaded_under_its_names_and_deployed_by_them(world: World) -> None:
    path = await upload_tar(world, docker_save(("hello:v1", "hello:latest"), ("other:v1",)), part_size=700)
    loaded = await world.call("PUT", path)
    assert loaded.status == 201
    assert {image["reference"] for image in loaded.json["data"]} == {"hello:v1", "hello:latest", "other:v1"}
    assert {(image["state"], image["loaded"]) for image in loaded.json["data"]} == {("ready", True)}
    await world.made("/v1/apps", {"name": "shop"})
    await world.made("/v1/apps/shop/deployments", {"image": "hello"})
    release = (await world.get("/v1/apps/shop/releases/1")).json
    assert release["config"]["image"] == "hello:latest"
    assert release["config"]["services"] == [{"process": "web", "port": 8080}]


async def test_one_image_is_loaded_under_the_name_that_is_given(world: World) -> None:
    path = await upload_tar(world, docker_save(("inner:v1",)))
    loaded = (await world.call("PUT", f"{path}&name=mine")).json["data"]
    assert [image["reference"] for image in loaded] == ["mine:latest"]
    path = await upload_tar(world, docker_save((), content=b"other"))
    assert (await world.call("PUT", path)).code == "no-name"
    assert [i["reference"] for i in (await world.call("PUT", f"{path}&name=nameless")).json["data"]] == [
        "nameless:latest"
    ]


async def test_a_name_is_looked_at_before_anything_is_uploaded(world: World) -> None:
    refused = await world.post("/v1/images/uploads?name=bad%20name")
    assert (refused.status, refused.code) == (422, "bad-reference")
    assert refused.json["errors"][0]["field"] == "name"
    path = await upload_tar(world, docker_save(("theirs:v1",)), query="?name=mine")
    assert [image["reference"] for image in (await world.call("PUT", path)).json["data"]] == ["mine:latest"]
    path = await upload_tar(world, docker_save(("theirs:v1",)), query="?name=mine")
    loaded = await world.call("PUT", f"{path}&name=another:v2")
    assert [image["reference"] for image in loaded.json["data"]] == ["another:v2"]


async def test_one_name_for_several_images_is_refused(world: World) -> None:
    path = await upload_tar(world, docker_save(("a:1",), ("b:1",)))
    assert (await world.call("PUT", f"{path}&name=mine")).code == "several-images"
    assert (await world.get("/v1/images")).json["data"] == []


async def test_a_name_loaded_again_means_the_new_image(world: World) -> None:
    for content in (b"one", b"two"):
        await world.call("PUT", await upload_tar(world, docker_save(("hello:v1",), content=content)))
        assert isinstance(world.clock, VirtualClock)
        await world.clock.advance(1)
    await world.made("/v1/apps", {"name": "shop"})
    await world.made("/v1/apps/shop/deployments", {"image": "hello:v1"})
    newest = (await world.get("/v1/images?sort=created_at:desc")).json["data"][0]
    assert (await world.get("/v1/apps/shop/releases/1")).json["image_digest"] == newest["digest"]


async def test_a_loaded_name_wins_over_a_registry(world: World) -> None:
    world.images.publish("registry.example/hello:v1")
    loaded = (await world.call("PUT", await upload_tar(world, docker_save(("registry.example/hello:v1",))))).json
    await world.made("/v1/apps", {"name": "shop"})
    await world.made("/v1/apps/shop/deployments", {"image": "registry.example/hello:v1"})
    digest = (await world.get("/v1/apps/shop/releases/1")).json["image_digest"]
    assert digest == loaded["data"][0]["digest"]


@pytest.mark.parametrize("data", [b"", b"not a tar", b"\0" * 2000, docker_save(("a:1",))[:900]])
async def test_a_corrupt_tar_is_refused_with_its_reason(world: World, data: bytes) -> None:
    path = await upload_tar(world, data)
    answer = await world.call("PUT", path)
    assert (answer.status, answer.code) == (422, "image-archive")
    assert (await world.get("/v1/images")).json["data"] == []


@pytest.mark.parametrize("name", ["../x:1", "a b:1", "A:1", "-x:1", "a:1\n", "a:" + "1" * 200])
async def test_a_name_in_a_tar_is_input_like_any_other(world: World, name: str) -> None:
    path = await upload_tar(world, docker_save((name,)))
    assert (await world.call("PUT", path)).code == "bad-reference"
    assert (await world.get("/v1/images")).json["data"] == []


async def test_an_upload_is_held_to_its_digest_and_can_be_finished_after(world: World) -> None:
    path = await upload_tar(world, docker_save(("hello:v1",)))
    wrong = path.partition("?")[0] + f"?digest=sha256:{'0' * 64}"
    assert (await world.call("PUT", wrong)).code == "digest-mismatch"
    assert (await world.call("PUT", path)).status == 201
    assert (await world.call("PUT", path)).status == 404


async def test_a_finished_upload_asked_again_with_its_key_is_answered_again(world: World) -> None:
    path = await upload_tar(world, docker_save(("hello:v1",)))
    headers = {"Idempotency-Key": "k"}
    first = await world.call("PUT", path, headers=headers)
    again = await world.call("PUT", path, headers=headers)
    assert (first.status, first.content) == (again.status, again.content)


async def test_parts_follow_one_another(world: World) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    assert (await send_part(world, upload, b"abc", 0)).json["offset"] == 3
    for first in (0, 2, 4, 1 << 40):
        assert (await send_part(world, upload, b"abc", first)).status == 409
    assert (await send_part(world, upload, b"def", 3)).json["offset"] == 6
    assert (await world.get(f"/v1/images/uploads/{upload}")).json["offset"] == 6


@pytest.mark.parametrize("value", ["", "bytes", "bytes 3-1/*", "bytes 0-x/*", "0-1-2", "bytes -5/*", "bytes ٣-٤/*"])
async def test_a_malformed_range_is_refused(world: World, value: str) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    headers = {"Content-Range": value} if value.isascii() else {"Content-Range": value.encode().decode("latin-1")}
    answer = await world.call("PATCH", f"/v1/images/uploads/{upload}", raw=b"abc", headers=headers)
    assert answer.status == 400


@pytest.mark.parametrize("length", [2, 4])
async def test_a_part_of_another_length_than_announced_leaves_nothing(world: World, length: int) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    await send_part(world, upload, b"abc", 0)
    headers = {"Content-Range": "bytes 3-5/*"}
    answer = await world.call("PATCH", f"/v1/images/uploads/{upload}", raw=b"x" * length, headers=headers)
    assert answer.code == "bad-length"
    await send_part(world, upload, b"def", 3)
    digest = hashlib.sha256(b"abcdef").hexdigest()
    answer = await world.call("PUT", f"/v1/images/uploads/{upload}?digest=sha256:{digest}")
    assert answer.code == "image-archive"  # the bytes are as sent; that they are no tar is another matter


async def test_a_part_over_the_limit_is_refused_before_it_is_read(world: World) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    headers = {"Content-Range": f"bytes 0-{spool.MAX_CHUNK}/*"}
    answer = await world.call("PATCH", f"/v1/images/uploads/{upload}", raw=b"x", headers=headers)
    assert answer.code == "part-too-large"


async def test_a_disk_without_room_says_how_much_it_has_and_keeps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    monkeypatch.setattr(spool, "_KEEP_FREE", 1 << 60)
    answer = await send_part(world, upload, b"abc", 0)
    assert (answer.status, answer.code) == (503, "spool-full")
    assert f"{(1 << 60) >> 20} stay so" in answer.json["detail"]
    assert "swg images rm" in answer.json["resolution"]


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("PATCH", "/v1/images/uploads/{}", (b"content-range", b"bytes 0-9/*")),
        ("POST", "/v1/apps", (b"idempotency-key", b"once")),
    ],
    ids=["upload", "body"],
)
async def test_a_client_that_breaks_off_is_no_defect_and_leaves_what_there_was(
    world: World, method: str, path: str, header: tuple[bytes, bytes]
) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    incoming = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there to be answered")

    scope = {
        "type": "http",
        "method": method,
        "path": path.format(upload),
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {OWNER}".encode()), (b"content-length", b"10"), header],
        "client": ("127.0.0.1", 1),
    }
    with capture_logs() as logs:
        await world.app(scope, receive, send)
    assert logs == []
    assert (await world.get(f"/v1/images/uploads/{upload}")).json["offset"] == 0
    assert (await world.get("/v1/apps")).json["data"] == []


async def test_a_project_has_few_uploads_at_a_time_and_old_ones_go(world: World, tmp_path: Path) -> None:
    for _ in range(spool.MAX_PER_PROJECT):
        await world.made("/v1/images/uploads")
    answer = await world.post("/v1/images/uploads")
    assert (answer.status, answer.code) == (429, "too-many-uploads")
    assert (await world.post("/v1/images/uploads", token=FOREIGN)).status == 201
    assert isinstance(world.clock, VirtualClock)
    await world.clock.advance(spool.RESTS_S + 1)
    assert (await world.post("/v1/images/uploads")).status == 201
    assert len(list((tmp_path / "spool").iterdir())) == 1


async def test_what_was_abandoned_goes_though_nobody_uploads_any_more(world: World, tmp_path: Path) -> None:
    assert isinstance(world.clock, VirtualClock)
    async with world.app.router.lifespan_context(world.app):
        upload = (await world.made("/v1/images/uploads"))["id"]
        await send_part(world, upload, b"abc", 0)
        await world.clock.advance(spool.RESTS_S - 10)
        assert len(list((tmp_path / "spool").iterdir())) == 1
        await world.clock.advance(100)
        assert list((tmp_path / "spool").iterdir()) == []
        assert (await world.get(f"/v1/images/uploads/{upload}")).status == 404


async def test_a_part_of_another_upload_removes_what_was_abandoned(world: World, tmp_path: Path) -> None:
    assert isinstance(world.clock, VirtualClock)
    old = (await world.made("/v1/images/uploads"))["id"]
    await world.clock.advance(spool.RESTS_S / 2 + 1)
    new = (await world.made("/v1/images/uploads"))["id"]
    await world.clock.advance(spool.RESTS_S / 2 + 1)
    assert (await send_part(world, new, b"abc", 0)).status == 200
    assert [path.name for path in (tmp_path / "spool").iterdir()] == [new] != [old]


@pytest.mark.parametrize(
    ("total", "free", "status"),
    [(100, 6, 200), (100, 4, 503), (8, 0.6, 200), (8, 0.4, 503), (10_000, 20, 200), (10_000, 15, 503)],
    ids=str,
)
async def test_a_share_of_the_disk_stays_free_of_uploads(
    world: World, monkeypatch: pytest.MonkeyPatch, total: int, free: float, status: int
) -> None:
    """In GiB: a twentieth, half a GiB at least, 16 at most."""
    upload = (await world.made("/v1/images/uploads"))["id"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(total * GIB, 0, int(free * GIB)))
    assert (await send_part(world, upload, b"abc", 0)).status == status


async def test_a_disk_that_fills_while_a_part_comes_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    looks = iter([50 * GIB, GIB])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(100 * GIB, 0, next(looks)))
    assert (await send_part(world, upload, b"abc", 0)).code == "spool-full"
    assert (await world.get(f"/v1/images/uploads/{upload}")).json["offset"] == 0


async def test_a_cancelled_upload_leaves_no_file(world: World, tmp_path: Path) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    await send_part(world, upload, b"abc", 0)
    assert (await world.call("DELETE", f"/v1/images/uploads/{upload}")).status == 204
    assert list((tmp_path / "spool").iterdir()) == []


async def test_uploads_are_seen_by_their_project_only(world: World) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    assert (await send_part(world, upload, b"abc", 0, token=FOREIGN)).status == 404
    assert (await send_part(world, upload, b"abc", 0, token=VIEWER)).status == 403
    assert (await world.get(f"/v1/images/uploads/{upload}")).json["offset"] == 0


async def test_two_requests_do_not_work_on_one_upload(world: World) -> None:
    upload = (await world.made("/v1/images/uploads"))["id"]
    answers = await asyncio.gather(*(send_part(world, upload, b"abc", 0) for _ in range(4)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
    assert (await world.get(f"/v1/images/uploads/{upload}")).json["offset"] == 3


async def test_an_image_in_use_is_not_deleted(world: World) -> None:
    await world.deployed()
    await world.running()
    image = (await world.get("/v1/images")).json["data"][0]
    assert (await world.call("DELETE", f"/v1/images/{image['id']}")).code == "image-in-use"
    world.images.publish("registry.example/unused:v1")
    unused = await world.made("/v1/images", {"reference": "registry.example/unused:v1"})
    assert unused["state"] == "fetching"
    assert (await world.call("DELETE", f"/v1/images/{unused['id']}")).status == 204
    assert (await world.get(f"/v1/images/{unused['id']}")).status == 404


async def test_a_second_name_of_an_image_in_use_may_go(world: World) -> None:
    await world.call("PUT", await upload_tar(world, docker_save(("hello:v1", "hello:v2"))))
    await world.made("/v1/apps", {"name": "shop"})
    await world.made("/v1/apps/shop/deployments", {"image": "hello:v1"})
    await world.running()
    for image in (await world.get("/v1/images?sort=reference:desc")).json["data"]:
        answer = await world.call("DELETE", f"/v1/images/{image['id']}")
        assert answer.status == (204 if image["reference"] == "hello:v2" else 409)


async def test_images_are_filtered(world: World) -> None:
    await world.call("PUT", await upload_tar(world, docker_save(("hello:v1",), ("other:v1",))))
    assert len((await world.get("/v1/images?filter[q]=HELL")).json["data"]) == 1
    assert len((await world.get("/v1/images?filter[state]=ready")).json["data"]) == 2
    assert (await world.get("/v1/images?filter[state]=failed")).json["data"] == []
