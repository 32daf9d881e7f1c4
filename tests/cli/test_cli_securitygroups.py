"""`swg groups` against the API on a real socket."""

from __future__ import annotations

import json

import pytest

from tests.api.running_api import Running
from tests.cli.cli_world import Machine

pytestmark = pytest.mark.usefixtures("shop")


def test_a_group_is_made_joined_changed_left_and_destroyed(machine: Machine, running: Running) -> None:
    assert "no groups yet" in machine.swg("groups", "ls").err
    assert "nothing is let in" in machine.swg("groups", "create", "web").err
    made = machine.swg("groups", "create", "db", "group:web:5432", "project/icmp", "--json")
    assert json.loads(made.out)["rules"] == [
        {"source": "group:web", "protocol": "tcp", "ports": "5432"},
        {"source": "project", "protocol": "icmp", "ports": ""},
    ]
    assert "apps in it: shop" in machine.swg("groups", "attach", "db", "shop").err
    changed = machine.swg("groups", "allow", "db", "app:shop:8000-8100/udp")
    assert changed.out.split()[:4] == ["SOURCE", "PROTOCOL", "PORTS", "group:web"]
    assert machine.swg("groups", "deny", "db", "project/icmp", "app:shop:8000-8100/udp").code == 0
    listed = machine.swg("groups", "ls").out.splitlines()
    assert listed[1].split()[:3] == ["db", "group:web:5432/tcp", "shop"]
    assert "named by the groups db" in machine.swg("groups", "show", "web").err
    held = machine.swg("groups", "destroy", "db", "-y")
    assert (held.code, "swg groups detach db shop" in held.err) == (5, True)
    assert machine.swg("groups", "detach", "db", "shop").code == 0
    assert [machine.swg("groups", "destroy", name, "-y").code for name in ("web", "db")] == [5, 0]


def test_what_is_no_rule_is_refused(machine: Machine, running: Running) -> None:
    machine.swg("groups", "create", "web")
    for wrong in ("web", "group:", "vm:web", "group:web/sctp", "10.0.0.0/8"):
        assert machine.swg("groups", "allow", "web", wrong).code == 2
    unknown = machine.swg("groups", "allow", "web", "app:nobodys")
    assert (unknown.code, "allow.0.source" in unknown.err) == (2, True)
    assert machine.swg("groups", "show", "nobodys").code == 4
    assert machine.swg("groups", "show", "web", "-a", "shop").code == 2
