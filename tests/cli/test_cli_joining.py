"""How an operator lets hosts join."""

from __future__ import annotations

import json

import pytest

from shellwego.client.generated import NewJoinTokenView
from tests.cli.cli_world import HandMadeApi, Machine, view

TOKENS = "/v1/nodes/join-tokens"


def made(url: str) -> NewJoinTokenView:
    return view(NewJoinTokenView, id="jtk_1", url=url, token="join_x")


def test_one_line_is_printed_to_be_run_on_the_new_host(machine: Machine, api: HandMadeApi) -> None:
    api.answer("POST", TOKENS, made("https://one.example:7081"))
    printed = machine.swg("nodes", "join-token", "--edge", "--region", "eu", "--label", "disk=ssd", "--minutes", "5")
    assert printed.out == "swg nodes join https://one.example:7081 join_x --edge\n"
    body = json.loads(api.asked[-1].body)
    assert (body["kind"], body["region"], body["labels"]) == ("edge", "eu", {"disk": "ssd"})
    assert body["expires_in"] == 300


@pytest.mark.parametrize("url", ["https://127.0.0.1:7081", "https://[::1]:7081", "https://localhost:7081"])
def test_an_address_that_no_other_host_reaches_is_told_as_such(machine: Machine, api: HandMadeApi, url: str) -> None:
    api.answer("POST", TOKENS, made(url))
    printed = machine.swg("nodes", "join-token")
    assert printed.out == f"swg nodes join {url} join_x\n"
    assert "--node-listen ADDRESS" in printed.err


@pytest.mark.parametrize("labels", [("disk",), ("disk=ssd", "disk=hdd")])
def test_labels_that_say_nothing_or_two_things_are_refused(
    machine: Machine, api: HandMadeApi, labels: tuple[str, ...]
) -> None:
    ended = machine.swg("nodes", "join-token", *(word for label in labels for word in ("--label", label)))
    assert (ended.code, api.asked) == (2, [])
