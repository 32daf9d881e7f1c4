"""`swg ports` against the API on a real socket."""

from __future__ import annotations

import json

import pytest

from tests.api.running_api import Running
from tests.cli.cli_world import Machine

pytestmark = pytest.mark.usefixtures("shop")


def test_a_port_is_published_listed_shown_and_closed(machine: Machine, running: Running) -> None:
    made = json.loads(machine.swg("ports", "publish", "-a", "shop", "25432:5432/tcp", "--process", "web", "--json").out)
    assert (made["port"], made["target_port"], made["protocol"], made["process"]) == (25_432, 5432, "tcp", "web")
    assert machine.swg("ports", "publish", "-a", "shop", "25432/udp").code == 0
    assert machine.swg("ports", "publish", "-a", "shop", "25432").code == 5
    assert machine.swg("ports", "ls", "-a", "shop", "--output", "name").out.split()[:1] != []
    listed = machine.swg("ports", "ls", "-a", "shop").out
    assert "25432/tcp" in listed
    assert "25432/udp" in listed
    assert "5432" in machine.swg("ports", "show", "-a", "shop", "25432").out
    assert machine.swg("ports", "unpublish", "-a", "shop", "25432").code == 2, "nobody can be asked"
    assert machine.swg("ports", "unpublish", "-a", "shop", "25432", "-y").code == 0
    assert machine.swg("ports", "unpublish", "-a", "shop", "25432", "-y").code == 4
    assert machine.swg("ports", "show", "-a", "shop", made["id"]).code == 4
    assert "25432/udp" in machine.swg("ports", "list", "-a", "shop").out


def test_what_is_no_port_is_refused_before_anybody_is_asked(machine: Machine, running: Running) -> None:
    for text in ("http", "1:2:3", "80/sctp", "123456", ":80"):
        assert machine.swg("ports", "publish", "-a", "shop", text).code == 2
    assert machine.swg("ports", "unpublish", "-a", "shop", "20000:80", "-y").code == 2
    refused = machine.swg("ports", "publish", "-a", "shop", "80")
    assert refused.code == 2
    assert "20000 to 29999" in refused.err
