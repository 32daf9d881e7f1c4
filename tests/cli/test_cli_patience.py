"""What a command does when its token has asked too often: it waits as long as it is told, and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from shellwego.client.generated import AppList, AppView, ImageView, LoadedView, Pagination, UploadView
from shellwego.client.transport import ApiProblem, Transport
from tests.cli.cli_world import HandMadeApi, Machine, view

APPS = "/v1/apps"
UPLOADS = "/v1/images/uploads"


def test_a_request_is_made_again_when_it_may_be(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", APPS, AppList(data=[view(AppView, name="shop")], pagination=view(Pagination)))
    api.first_too_often("GET", APPS, 3)
    ended = machine.swg("apps", "ls", "--output", "name")
    assert (ended.code, ended.out, ended.err) == (0, "shop\n", "")
    assert len(api.asked) == 4


def test_a_change_that_was_refused_so_has_not_happened_and_is_made(machine: Machine, api: HandMadeApi) -> None:
    api.answer("POST", APPS, view(AppView, name="shop"), status=201)
    api.first_too_often("POST", APPS)
    assert machine.swg("apps", "create", "shop").code == 0
    assert [asked.body for asked in api.asked] == [b'{"name":"shop"}'] * 2


def test_a_pull_goes_on_while_the_token_may_ask_little(machine: Machine, api: HandMadeApi) -> None:
    image = view(ImageView, id="img_1", reference="shop:v1", state="ready")
    api.answer("POST", "/v1/images", view(ImageView, id="img_1", reference="shop:v1", state="fetching"), status=202)
    api.answer("GET", "/v1/images/img_1", image)
    api.first_too_often("GET", "/v1/images/img_1", 2)
    assert machine.swg("images", "pull", "shop:v1").code == 0


def test_every_part_of_an_upload_arrives_though_the_token_may_ask_little(
    machine: Machine, api: HandMadeApi, tmp_path: Path
) -> None:
    upload = view(UploadView, id="upl_1", chunk_bytes=4)
    api.answer("POST", UPLOADS, upload, status=201)
    api.answer("PATCH", f"{UPLOADS}/upl_1", upload)
    api.first_too_often("PATCH", f"{UPLOADS}/upl_1", 2)
    api.answer("PUT", f"{UPLOADS}/upl_1", view(LoadedView), status=201)
    tar = tmp_path / "shop.tar"
    tar.write_bytes(b"12345678")
    assert machine.swg("images", "load", "shop:v1", str(tar)).code == 0
    assert [asked.body for asked in api.asked if asked.method == "PATCH"] == [b"1234"] * 3 + [b"5678"]


def test_an_upload_that_fails_is_thrown_away_though_the_token_may_ask_little(
    machine: Machine, api: HandMadeApi, tmp_path: Path
) -> None:
    api.answer("POST", UPLOADS, view(UploadView, id="upl_1", chunk_bytes=4), status=201)
    api.refuse("PATCH", f"{UPLOADS}/upl_1", 413, "upload-too-large")
    api.answer("DELETE", f"{UPLOADS}/upl_1", status=204)
    api.first_too_often("DELETE", f"{UPLOADS}/upl_1")
    tar = tmp_path / "shop.tar"
    tar.write_bytes(b"1234")
    assert machine.swg("images", "load", "shop:v1", str(tar)).code == 2
    assert [asked.method for asked in api.asked][-2:] == ["DELETE", "DELETE"]


def test_a_stream_is_opened_when_it_may_be(api: HandMadeApi) -> None:
    api.answer("GET", "/v1/events/stream", b"one\ntwo\n")
    api.first_too_often("GET", "/v1/events/stream", 2)
    with Transport(api.url) as transport:
        assert list(transport.stream("/v1/events/stream")) == [b"one\n", b"two\n"]


@pytest.mark.parametrize("wait", ["86400", "soon", "-1", ""])
def test_what_would_take_too_long_or_is_no_time_is_told_at_once(machine: Machine, api: HandMadeApi, wait: str) -> None:
    api.answer("GET", APPS, AppList(data=[], pagination=view(Pagination)))
    api.first_too_often("GET", APPS, **{"Retry-After": wait})
    ended = machine.swg("apps", "ls")
    assert (ended.code, ended.err, len(api.asked)) == (7, "Error: too often\n", 1)


def test_a_body_that_cannot_be_sent_again_is_not(api: HandMadeApi) -> None:
    api.answer("POST", "/x", b"done")
    api.first_too_often("POST", "/x")
    headers = {"Content-Length": "4"}
    with Transport(api.url) as transport, pytest.raises(ApiProblem, match="too often"):
        transport.send("POST", "/x", headers=headers, body=iter([b"ab", b"cd"]))
    assert [asked.body for asked in api.asked] == [b"abcd"]
