"""Requests as variables, and output as an answer: what passes, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmavmc.hypervisor.wasm.gateway import (
    BadAnswerError,
    BadRequestError,
    Head,
    Request,
    check_request,
    find_head,
    parse_head,
    variables_of,
)

HOST = ("host", "app.example")


def asked(target: str, *headers: tuple[str, str], method: str = "GET") -> Request:
    return Request(method, target, (HOST, *headers))


def paths(target: str) -> tuple[str, str, str]:
    told = variables_of(asked(target), 0, {})
    return told["PATH_INFO"], told["QUERY_STRING"], told["REQUEST_URI"]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a%20b%2Fc", "/a b/c", ""),
        ("/%C3%A9?x=/../%2e%2e&y", "/é", "x=/../%2e%2e&y"),
        ("/a..b/...", "/a..b/...", ""),
        ("/%252e%252e/", "/%2e%2e/", ""),
        ("http://app.example/x?y", "/x", "y"),
        ("HTTP://APP.example", "/", ""),
    ],
)
def test_a_path_is_decoded_and_a_query_is_not(target: str, path: str, query: str) -> None:
    assert paths(target)[:2] == (path, query)


def test_the_target_is_told_as_it_came() -> None:
    assert paths("/a%20b?c=%20")[2] == "/a%20b?c=%20"


@pytest.mark.parametrize(
    "target",
    [
        "/..", "/../x", "/a/../b", "/%2e%2e/x", "/%2E./x", "/..%2fx", "/a%2f..%2fb", "/..%5cx", "/a\\..\\b", "/x%00.html",
        "/%ff", "/%zz", "/%2", "/a#b", "x", "*", "ftp://app.example/", "http://other.example/", "http://u@app.example/",
    ],
)  # fmt: skip
def test_a_target_that_could_be_read_in_another_way_is_refused(target: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        check_request(asked(target))
    assert refused.value.status == 400


@pytest.mark.parametrize("host", ["a b", "a/b", "a:99999999", "a@b", "a,b", "a:x"])
def test_a_host_with_other_characters_is_refused(host: str) -> None:
    with pytest.raises(BadRequestError):
        check_request(Request("GET", "/", (("host", host),)))


def test_no_header_becomes_a_variable_of_the_vm_or_of_the_gateway() -> None:
    headers = (("proxy", "a"), ("x_size", "b"), ("x-size", "c"), ("x-colour", "d"), ("request-method", "PUT"))
    told = variables_of(asked("/", *headers), 0, {"HTTP_X_COLOUR": "own", "REQUEST_METHOD": "own", "PATH": "own"})
    assert "HTTP_PROXY" not in told
    assert told["HTTP_X_SIZE"] == "c"
    assert (told["HTTP_X_COLOUR"], told["PATH"]) == ("own", "own")
    assert (told["REQUEST_METHOD"], told["HTTP_REQUEST_METHOD"]) == ("GET", "PUT")


def test_who_asked_is_the_last_that_was_forwarded_for_and_nobody_else() -> None:
    def client(*values: str) -> str:
        return variables_of(asked("/", *(("x-forwarded-for", value) for value in values)), 0, {})["REMOTE_ADDR"]

    assert client("1.1.1.1, 2.2.2.2", "3.3.3.3") == "3.3.3.3"
    assert client("::1") == "::1"
    assert client() == client("evil") == client("1.1.1.1, evil") == "0.0.0.0"  # noqa: S104


@given(st.binary(max_size=300), st.integers(0, 300))
def test_a_head_is_found_in_whatever_pieces_it_comes(output: bytes, cut: int) -> None:
    """Found in a first part, it is the same as in the whole."""
    early = find_head(output[:cut])
    if early is not None:
        assert find_head(output) == (early[0], early[1] + output[cut:])


@given(st.binary(max_size=300))
def test_what_is_taken_for_a_head_can_be_written_as_one(output: bytes) -> None:
    """No header of it can hold the end of a line."""
    try:
        head = parse_head(output)
    except BadAnswerError:
        return
    assert 200 <= head.status <= 599
    assert not any(set(name + value) & {"\r", "\n", "\0"} for name, value in head.headers)


@pytest.mark.parametrize(
    ("raw", "head"),
    [
        (b"Content-Type: a", Head(200, "", (("Content-Type", "a"),))),
        (b"Status: 404 Not here\r\nX: b", Head(404, "Not here", (("X", "b"),))),
        (b"Location: /x", Head(302, "", (("Location", "/x"),))),
        (b"location: http://a/\nstatus: 301", Head(301, "", (("location", "http://a/"),))),
        (b"Content-Type: a\nContent-Length: 3\nConnection: close", Head(200, "", (("Content-Type", "a"),), 3)),
        (b"Status: 204\nContent-Length: 0", Head(204, "", ())),
    ],
)
def test_a_head_says_status_and_headers(raw: bytes, head: Head) -> None:
    assert parse_head(raw) == head


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"hello", b"X: a", b"Content Type: a", b" Content-Type: a", b"Content-Type: a\n folded", b": a",
        b"Content-Type : a", b"Status: 100", b"Status: 600", b"Status: 20", b"Status: 200\nStatus: 200", b"Status: OK",
        b"Status: 200\nContent-Length: -1", b"Status: 200\nContent-Length: 1\nContent-Length: 1", b"Location: a\0",
        b"Status: 200\nContent-Length: 0x1", b"Status: 200\nTRANSFER-encoding: x", b"Content-Type: a\rX: b", b"X: \xff",
        b"Status: 200\n" + b"X: a\n" * 100 + b"Y: b",
    ],
)  # fmt: skip
def test_what_is_no_head_is_refused(raw: bytes) -> None:
    with pytest.raises(BadAnswerError):
        parse_head(raw)


def test_no_content_follows_where_the_method_or_the_status_has_none() -> None:
    plain = Head(200, "", ())
    assert plain.has_content("GET")
    assert not plain.has_content("HEAD")
    assert not Head(204, "", ()).has_content("GET")
    assert not Head(304, "", ()).has_content("GET")
