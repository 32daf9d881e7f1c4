"""What is no text, no document, no address or no answer ends a command with a message, and never with a traceback."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from shellwego.client.generated import AppView, LogList, QuotasView
from shellwego.client.text import printable
from tests.cli.cli_world import HandMadeApi, Machine, view

SWG = [sys.executable, "-c", "from shellwego.main import main; main()"]
NO_TEXT = "\udcff"
"""A byte of the command line that is not UTF-8, as Python has it."""
DEEP = b'{"more": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"


@pytest.mark.parametrize(
    "words",
    [
        *("apps show NAME", "env set -a shop A=NAME", "groups create NAME", "tokens create NAME"),
        *("exec -a shop -- NAME", "deploy -a shop -i NAME"),
    ],
)
def test_what_is_no_text_is_told_as_such_and_not_shown(machine: Machine, api: HandMadeApi, words: str) -> None:
    ended = machine.swg(*words.replace("NAME", f"secret{NO_TEXT}").split())
    assert (ended.code, api.asked) == (2, [])
    assert ended.err == "Error: what was given holds bytes that are no text in UTF-8\n"


def test_a_file_of_variables_that_is_no_text_is_told_as_such(
    machine: Machine, api: HandMadeApi, tmp_path: Path
) -> None:
    (tmp_path / "variables").write_bytes(b"A=secret\xff\n")
    ended = machine.swg("env", "import", "-a", "shop", str(tmp_path / "variables"))
    assert (ended.code, api.asked) == (2, [])
    assert ended.err == "Error: what was given holds bytes that are no text in UTF-8\n"


def test_a_token_that_no_token_can_be_is_not_sent(machine: Machine, api: HandMadeApi) -> None:
    ended = machine.swg("apps", "ls", SHELLWEGO_TOKEN="pat_\u20ac")
    assert (ended.code, api.asked) == (2, [])
    assert "the token has characters that no token has" in ended.err


@pytest.mark.parametrize("host", ["a..b", "a" * 300])
def test_a_host_that_no_host_can_be_is_no_url_of_an_api(machine: Machine, host: str) -> None:
    ended = machine.swg("apps", "ls", SHELLWEGO_API_URL=f"http://{host}:80")
    assert ended.code == 2
    assert "not the URL of an API" in ended.err


def test_documents_that_have_no_end_of_depth_are_told_by_their_file(
    machine: Machine, api: HandMadeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "shellwego.toml"
    deep.write_text("a = " + "[" * 5000)
    monkeypatch.chdir(tmp_path)
    for words in (("manifest", "check", str(deep)), ("apps", "ls", "-c", str(deep)), ("status",)):
        ended = machine.swg(*words)
        assert ended.code in (1, 2)
        assert "shellwego.toml" in ended.err, words
    assert api.asked == []


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_has_no_end_of_depth_is_none_of_this_api(
    machine: Machine, api: HandMadeApi, status: int
) -> None:
    api.answer("GET", "/v1/apps", DEEP, status=status)
    ended = machine.swg("apps", "ls")
    assert ended.code == 1
    assert "not one of this API" in ended.err or "not from the API" in ended.err


def test_a_length_that_is_none_is_no_answer(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}")

        Thread(target=answer, daemon=True).start()
        ended = machine.swg("apps", "ls", SHELLWEGO_API_URL=f"http://127.0.0.1:{server.getsockname()[1]}")
    assert ended.code == 1
    assert "cannot be reached" in ended.err


def test_a_directory_that_is_gone_is_told(machine: Machine, api: HandMadeApi, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    remove_and_ask = "import os; os.rmdir(os.getcwd()); from shellwego.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", remove_and_ask, "plan"],
        cwd=gone,
        env={**os.environ, "XDG_CONFIG_HOME": str(machine.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "Error: No such file or directory\n"


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["apps", "--help"]])
def test_output_that_has_no_room_is_told_in_a_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([*SWG, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "Error: No space left on device\n")


def test_colours_of_a_text_end_with_it() -> None:
    assert printable("\x1b[8mhidden").endswith("\x1b[0m")
    assert printable("plain") == "plain"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("apps create shop", 0),
        ("exec -a shop -- true", 4),
        ("secrets set NAME", 2),
        ("login --url URL", 2),
        ("user password", 2),
        ("images load shop:v1 -", 4),
        ("apps destroy shop", 2),
    ],
)
def test_what_the_caller_has_closed_is_as_if_there_were_nothing(
    machine: Machine, api: HandMadeApi, closed: str, words: str, code: int
) -> None:
    api.answer("POST", "/v1/apps", view(AppView, name="shop"), status=201)
    api.answer("GET", "/v1/apps/shop", view(AppView, name="shop"))
    api.refuse("GET", "/v1/apps/shop/exec", 404)
    api.refuse("POST", "/v1/images/uploads", 404)
    program = shlex.join([*SWG, *words.replace("URL", api.url).split()])
    ended = subprocess.run(
        ["sh", "-c", f"{program} {closed}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(machine.home)},
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    assert ended.returncode == code, ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("scale -a shop web=\u00b2", "is not PROCESS=COUNT"),
        (f"scale -a shop web={'9' * 5000}", "is not PROCESS=COUNT"),
        ("secrets set NAME --expires 99999999999d", "is longer than a thousand years"),
        (f"logs -a shop --since {'9' * 400}", "is no time such as"),
        (f"orgs quotas acme --set apps={'9' * 5000}", "is no limit"),
    ],
)
def test_a_number_that_is_none_or_too_long_is_a_mistake_of_use(
    machine: Machine, api: HandMadeApi, words: str, said: str
) -> None:
    api.answer("GET", "/v1/organizations/acme/quotas", view(QuotasView))
    ended = machine.swg(*words.split(), stdin="value")
    assert (ended.code, said in ended.err) == (2, True)
    assert not [asked for asked in api.asked if asked.method != "GET"]


def test_an_age_from_before_all_clocks_is_all_that_there_is(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop/logs", LogList(data=[]))
    assert machine.swg("logs", "-a", "shop", "--since", "99999d").code == 0
    assert "since=0.0" in api.asked[-1].query
