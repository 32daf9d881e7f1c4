"""`swg egress` against the API on a real socket."""

from __future__ import annotations

import json

import pytest

from tests.api.running_api import Running
from tests.cli.cli_world import Machine

pytestmark = pytest.mark.usefixtures("shop")


def test_a_list_is_written_closed_shown_and_opened(machine: Machine, running: Running) -> None:
    noted = machine.swg("egress", "allow", "203.0.113.0/24:443/tcp", "198.51.100.7", "-a", "shop")
    assert noted.code == 0
    assert "swg egress close" in noted.err
    closed = machine.swg("egress", "close", "192.0.2.0/24:8000-8100/udp", "-a", "shop", "--json")
    assert json.loads(closed.out) == {
        "mode": "listed",
        "destinations": [
            {"network": "203.0.113.0/24", "protocol": "tcp", "ports": "443"},
            {"network": "198.51.100.7/32", "protocol": "any", "ports": ""},
            {"network": "192.0.2.0/24", "protocol": "udp", "ports": "8000-8100"},
        ],
    }
    assert machine.swg("egress", "deny", "198.51.100.7", "192.0.2.0/24:8000-8100/udp", "-a", "shop").code == 0
    shown = machine.swg("egress", "show", "-a", "shop")
    assert "held to this list" in shown.err
    assert shown.out.split() == ["NETWORK", "PROTOCOL", "PORTS", "203.0.113.0/24", "tcp", "443"]
    assert "not in force" in machine.swg("egress", "open", "-a", "shop").err


def test_ports_alone_are_those_of_tcp_and_what_is_none_is_refused(machine: Machine, running: Running) -> None:
    made = machine.swg("egress", "allow", "203.0.113.7:443", "-a", "shop", "--json")
    assert json.loads(made.out)["destinations"][0]["protocol"] == "tcp"
    assert machine.swg("egress", "allow", "203.0.113.7/sctp", "-a", "shop").code == 2
    named = machine.swg("egress", "allow", "example.org", "-a", "shop")
    assert (named.code, "allow.0.network" in named.err) == (2, True)
    assert machine.swg("egress", "show", "-a", "nobodys").code == 4
