"""The words of HAProxy's runtime API, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shellwego.edge import runtime
from shellwego.edge.pool import (
    AddServer,
    CutSessions,
    DeleteServer,
    DropHost,
    DropPage,
    Operation,
    Server,
    ServerState,
    SetPage,
    SetState,
    SetWeight,
    Slot,
    TurnHost,
)
from shellwego.edge.runtime import Processes, RuntimeApiError, Worker, ask
from shellwego.edge.settings import Layout

KEY = ("swg_b0001", "ins_a.12345678")
LAYOUT = Layout(Path("/run/swg"))

STATES = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change \
srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn \
srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port
3 swg_fallback 1 relay - 2 0 1 1 0 1 0 0 0 0 0 0 - 0 - 0 0 - - 0
5 swg_b0001 1 a 127.0.0.1 2 0 100 100 83 1 0 0 0 0 0 0 - 18100 - 0 0 - - 0
5 swg_b0001 2 b ::1 0 1 256 256 0 1 0 0 0 0 0 0 - 80 - 0 0 - - 0
5 swg_b0001 3 c - 2 8 0 1 0 1 0 0 0 0 0 0 - 0 - 0 0 - - 0

"""
CONNECTIONS = """\
# bkname/svname bkid/svid addr port - purge_delay used_cur used_max need_est unsafe_nb safe_nb idle_lim \
idle_cur idle_per_thr[2]
swg_fallback/relay 3/1 - 0 - 5000 4 1 1 0 0 0 0 0 0
swg_b0001/a 5/1 127.0.0.1 18100 - 5000 2 1 1 0 7 -1 7 3 4
swg_b0001/b 5/2 ::1 80 - 5000 0 1 1 0 0 0 0 0 0

"""
PROCESSES = """\
#<PID>          <type>          <reloads>       <uptime>        <version>
13757           master          2 [failed: 1]   0d00h01m23s     2.6.12-1+deb12u4
# workers
14979           worker          0               0d00h00m01s     2.6.12-1+deb12u4
# old workers
13760           worker          2               0d00h01m23s     2.6.12-1+deb12u4
13766           worker          1               0d00h01m23s     2.6.12-1+deb12u4
# programs

"""


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (
            AddServer(KEY, Slot("10.0.0.1:80", 7)),
            "add server swg_b0001/ins_a.12345678 10.0.0.1:80 weight 7 pool-max-conn -1 pool-purge-delay 1s",
        ),
        (SetState(KEY, ServerState.DRAIN), "set server swg_b0001/ins_a.12345678 state drain"),
        (SetWeight(KEY, 9), "set server swg_b0001/ins_a.12345678 weight 9"),
        (CutSessions(KEY), "shutdown sessions server swg_b0001/ins_a.12345678"),
        (DeleteServer(KEY), "del server swg_b0001/ins_a.12345678"),
        (TurnHost("a.example", "swg_b0001", None), "add map /run/swg/hosts.map a.example swg_b0001"),
        (TurnHost("a.example", "swg_b0001", "swg_b0000"), "set map /run/swg/hosts.map a.example swg_b0001"),
        (DropHost("a.example", "swg_b0001"), "del map /run/swg/hosts.map a.example"),
        (SetPage("a.example", "app-stopped", None), "add map /run/swg/pages.map a.example app-stopped"),
        (SetPage("a.example", "app-stopped", "x"), "set map /run/swg/pages.map a.example app-stopped"),
        (DropPage("a.example"), "del map /run/swg/pages.map a.example"),
    ],
)
def test_an_operation_in_haproxys_words(operation: Operation, words: str) -> None:
    assert runtime.command(LAYOUT, operation) == words


def test_servers_are_read_with_address_weight_and_state() -> None:
    assert runtime.parse_states(STATES) == {
        ("swg_b0001", "a"): Server("127.0.0.1:18100", 100, ServerState.READY),
        ("swg_b0001", "b"): Server("[::1]:80", 256, ServerState.MAINT),
        ("swg_b0001", "c"): Server("", 0, ServerState.DRAIN),
    }


def test_connections_in_use_are_counted_and_idle_ones_are_not() -> None:
    assert runtime.parse_connections(CONNECTIONS) == {("swg_b0001", "a"): 2, ("swg_b0001", "b"): 0}


def test_old_workers_are_told_from_the_current_one() -> None:
    assert runtime.parse_processes(PROCESSES) == Processes(14979, (13760, 13766), 1)


def test_a_map_is_read_and_of_a_doubled_key_the_first_counts() -> None:
    text = "0x7f61 a.example swg_b0001\n0x7f62 b.example swg_b0002\n0x7f63 a.example swg_b0003\n\n"
    assert runtime.parse_map(text) == {"a.example": "swg_b0001", "b.example": "swg_b0002"}


@pytest.mark.parametrize("text", ["Unknown map identifier. Please use #<id> or <file>.\n", "Permission denied\n"])
def test_an_answer_that_is_no_map_is_an_error(text: str) -> None:
    with pytest.raises(RuntimeApiError):
        runtime.parse_map(text)


def test_a_master_without_a_worker_is_an_error() -> None:
    with pytest.raises(RuntimeApiError, match="no worker"):
        runtime.parse_processes("Unknown command")


def test_a_number_that_is_none_is_an_error() -> None:
    with pytest.raises(RuntimeApiError):
        runtime.parse_connections("swg_b0001/a 5/1 127.0.0.1 18100 - 5000 many\n")


def test_answers_are_told_apart_by_the_prompt_since_some_lack_an_end() -> None:
    text = "\n> \n> No such server.\n> No such server.\n\n> Server deleted.\n> "
    assert runtime.split_answers(text, 4) == ["", "No such server.", "No such server.", "Server deleted."]


@pytest.mark.parametrize("text", ["", "\n> ", "\n> \n> \n> "])
def test_more_or_fewer_answers_than_commands_are_an_error(text: str) -> None:
    with pytest.raises(RuntimeApiError):
        runtime.split_answers(text, 1)


def test_requests_stay_below_haproxys_buffer() -> None:
    commands = [f"set map /run/swg/hosts.map host{number}.example swg_b0001" for number in range(1000)]
    batches = list(runtime.batches(commands))
    assert [command for batch in batches for command in batch] == commands
    assert max(len(";".join(["prompt", *batch])) for batch in batches) < 16_000
    assert list(runtime.batches([])) == []


@asynccontextmanager
async def answering(path: Path, answer: bytes) -> AsyncIterator[list[str]]:
    """A socket that reads one request and says this."""
    heard: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append((await reader.read()).decode())
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield heard
    finally:
        server.close()


async def test_every_answer_is_compared_with_what_success_looks_like(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    answer = b"\n> New server registered.\n\n> \n> No such server.\n\n> Already exists a server.\n\n> "
    operations = [AddServer(KEY, Slot("10.0.0.1:80", 1)), SetState(KEY, ServerState.READY), DeleteServer(KEY)]
    async with answering(layout.admin_socket, answer) as heard:
        complaints = await Worker(layout).execute([*operations, AddServer(KEY, Slot("10.0.0.1:80", 1))])
    assert complaints == ["", "", "No such server.", "Already exists a server."]
    assert heard[0].startswith("prompt;add server ")


async def test_a_look_joins_servers_with_their_connections_and_both_maps(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    answers = {
        "show servers state": STATES,
        "show servers conn": CONNECTIONS,
        "show backend": "# name\nswg_fallback\nswg_b0000\nswg_b0001\n\n",
        f"show map {layout.hosts_map}": "0x1 a.example swg_b0001\n\n",
        f"show map {layout.pages_map}": "0x1 b.example app-stopped\n\n",
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[(await reader.read()).decode().strip()].encode())
        writer.close()

    async with await asyncio.start_unix_server(serve, str(layout.admin_socket)):
        pool = await Worker(layout).pool()
    assert pool.size == 2
    assert pool.servers["swg_b0001", "a"] == Server("127.0.0.1:18100", 100, ServerState.READY, 2)
    assert (pool.hosts, pool.pages) == ({"a.example": "swg_b0001"}, {"b.example": "app-stopped"})


async def test_a_socket_that_is_gone_is_a_temporary_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeApiError, match="No such file") as caught:
        await ask(tmp_path / "none.sock", "show info")
    assert caught.value.temporary


async def test_an_answer_cut_off_is_an_error(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    async with answering(layout.admin_socket, b"\n> New ser"):
        with pytest.raises(RuntimeApiError):
            await Worker(layout).execute([DeleteServer(KEY)])
