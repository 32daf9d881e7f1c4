"""`swg audit`: what is shown, what is written, and how a broken chain or a cut export ends."""

from __future__ import annotations

import json

from shellwego.client.generated import AuditBreak, AuditHead, AuditList, AuditVerification, AuditView, Pagination
from tests.cli.cli_world import HandMadeApi, Machine, view

LINE = b'{"id":"aud_1"}\n'
END = b'{"complete":true,"records":1}\n'


def test_records_are_listed_over_pages_up_to_the_limit(machine: Machine, api: HandMadeApi) -> None:
    more = view(Pagination, has_more=True, next_cursor="next")
    pages = [AuditList(data=[view(AuditView, id=f"aud_{n}")], pagination=more) for n in range(3)]
    api.answer("GET", "/v1/audit", *pages)
    assert machine.swg("audit", "ls", "-n", "2", "--output", "name").out == "aud_0\naud_1\n"


def test_an_export_is_written_without_its_last_line(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/audit/export", LINE + END)
    ended = machine.swg("audit", "export")
    assert (ended.code, ended.out, ended.err) == (0, LINE.decode(), "1 records\n")


def test_an_export_that_was_cut_off_fails(machine: Machine, api: HandMadeApi) -> None:
    for cut in (LINE, b"", LINE + END[:-1]):
        api.answer("GET", "/v1/audit/export", cut)
        ended = machine.swg("audit", "export")
        assert ended.code == 1
        assert "cut off" in ended.err


def test_an_export_to_what_is_no_file_is_a_mistake_of_use(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/audit/export", LINE + END)
    ended = machine.swg("audit", "export", "/")
    assert (ended.code, ended.err) == (2, "Error: / cannot be written: Is a directory\n")


def test_a_chain_that_holds_shows_its_head_for_later(machine: Machine, api: HandMadeApi) -> None:
    head = AuditHead(position="platform/000000000001", hash="ab" * 32)
    api.answer("GET", "/v1/audit/verify", view(AuditVerification, sound=True, heads=[head]))
    ended = machine.swg("audit", "verify", "--anchor", "a:b")
    assert ended.code == 0
    assert f"{head.position}:{head.hash}" in ended.out
    assert "anchor=a%3Ab" in api.asked[-1].query


def test_a_chain_that_breaks_ends_with_its_place(machine: Machine, api: HandMadeApi) -> None:
    broken = AuditBreak(position="org_1/000000000007", fault="changed", message="its content", id="aud_7")
    api.answer("GET", "/v1/audit/verify", view(AuditVerification, broken=broken))
    ended = machine.swg("audit", "verify", "--output", "json")
    assert ended.code == 1
    assert json.loads(ended.out)["broken"]["id"] == "aud_7"
    assert "org_1/000000000007" in ended.err
