"""Listings: what of, in which order, and how it stands in a table."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from shellwego.cli.deployments import STATES
from shellwego.client.generated import (
    AppList,
    AppView,
    BackendView,
    DeliveryList,
    DeploymentList,
    DrainView,
    EnvView,
    EventList,
    EventView,
    InstanceList,
    InstanceView,
    KeyRotationView,
    LogList,
    MoveView,
    NetworkUsageView,
    NodeList,
    NodeView,
    Pagination,
    ProjectView,
    RebalanceView,
    TunnelKeyView,
    UsageView,
    UserView,
    WaitingView,
)
from shellwego.core.deployments import DeploymentState
from tests.cli.cli_world import HandMadeApi, Machine, view

LAST = view(Pagination)


def event(seq: int, app: str, **fields: object) -> EventView:
    return view(EventView, **{"seq": seq, "resource": app, "data": {"app": app}, **fields})


def test_events_of_an_app_are_looked_for_over_all_pages(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop", view(AppView, id="app_shop"))
    more = view(Pagination, has_more=True, next_cursor="next")
    first = EventList(data=[event(9, "app_shop"), event(8, "app_other")], pagination=more)
    api.answer(
        "GET", "/v1/events", first, EventList(data=[event(3, "app_shop"), event(2, "app_shop")], pagination=LAST)
    )
    assert machine.swg("events", "-a", "shop", "-n", "2", "--output", "name").out == "3\n9\n"


def test_an_app_is_named_to_status_and_logs_as_to_the_others(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop", view(AppView, id="app_shop", name="shop", deployment_id=None))
    api.answer("GET", "/v1/apps/app_shop/instances", InstanceList(data=[], pagination=LAST))
    api.answer("GET", "/v1/apps/shop/logs", LogList(data=[]))
    for words in (("status", "shop"), ("logs", "shop"), ("logs", "-n", "3", "shop")):
        assert machine.swg(*words).code == 0
        assert machine.swg(*words, SHELLWEGO_APP="other").code == 0


def test_the_microvms_of_an_app_are_listed_with_its_name(machine: Machine, api: HandMadeApi) -> None:
    apps = [view(AppView, id="app_shop", name="shop"), view(AppView, id="app_blog", name="blog")]
    api.answer("GET", "/v1/apps", AppList(data=apps, pagination=LAST))
    vms = [
        view(InstanceView, id=f"ins_{slot}", app_id=app, process="web", slot=slot)
        for slot, app in ((1, "app_shop"), (2, "app_blog"))
    ]
    api.answer("GET", "/v1/vms", InstanceList(data=vms, pagination=LAST))
    api.answer("GET", "/v1/apps/shop/instances", InstanceList(data=vms[:1], pagination=LAST))
    shown = [line.split()[:3] for line in machine.swg("vms", "ls").out.splitlines()]
    assert shown == [["APP", "INSTANCE", "ID"], ["shop", "web.1", "ins_1"], ["blog", "web.2", "ins_2"]]
    assert machine.swg("vms", "ls", "-a", "shop", "--output", "name").out == "ins_1\n"


def test_a_microvm_of_an_app_is_shown_by_its_place(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop/instances/web.0", view(InstanceView, id="ins_1"))
    assert machine.swg("vms", "show", "web.0", "-a", "shop", "--output", "name").out == "ins_1\n"


def test_an_app_or_a_project_that_is_not_there_is_told_by_listings_and_by_whoami(
    machine: Machine, api: HandMadeApi
) -> None:
    for path in ("/v1/apps/nope", "/v1/apps/nope/instances", "/v1/projects/nope"):
        api.refuse("GET", path, 404, "not-found")
    api.answer("GET", "/v1/user", view(UserView, email="me@x"))
    for words in (("events", "-a"), ("vms", "ls", "-a"), ("whoami", "-p")):
        ended = machine.swg(*words, "nope")
        assert (ended.code, ended.out) == (4, "")
    api.answer("GET", "/v1/projects/prj_1", view(ProjectView, name="first"))
    assert "project  first" in machine.swg("whoami", "-p", "prj_1").out


def test_status_has_its_instances_by_process_and_slot_in_every_form(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop", view(AppView, id="app_1", name="shop"))
    newest_first = [view(InstanceView, id=f"ins_{slot}", process="web", slot=slot) for slot in (1, 2, 0)]
    api.answer("GET", "/v1/apps/app_1/instances", InstanceList(data=newest_first, pagination=LAST))
    assert machine.swg("status", "-a", "shop", "--output", "name").out == "ins_0\nins_1\nins_2\n"
    document = json.loads(machine.swg("status", "-a", "shop", "--json").out)
    assert [instance["slot"] for instance in document["instances"]] == [0, 1, 2]


def test_events_are_asked_for_by_age_and_beyond_one_page(machine: Machine, api: HandMadeApi) -> None:
    more = view(Pagination, has_more=True, next_cursor="next")
    first = EventList(data=[event(seq, "app_shop") for seq in range(150, 50, -1)], pagination=more)
    second = EventList(data=[event(seq, "app_shop") for seq in range(50, 0, -1)], pagination=LAST)
    api.answer("GET", "/v1/events", first, second)
    shown = machine.swg("events", "-n", "120", "--since", "10m", "--output", "name").out.split()
    assert shown == [str(seq) for seq in range(31, 151)]
    assert all("filter%5Btime%5D%5Bgte%5D=" in asked.query for asked in api.asked)


def test_nodes_and_microvms_beyond_one_page_are_listed_too(machine: Machine, api: HandMadeApi) -> None:
    more = view(Pagination, has_more=True, next_cursor="next")
    nodes = [NodeList(data=[view(NodeView, name=name)], pagination=page) for name, page in (("a", more), ("b", LAST))]
    api.answer("GET", "/v1/nodes", *nodes)
    assert machine.swg("nodes", "ls", "--output", "name").out == "a\nb\n"
    vms = [InstanceList(data=[view(InstanceView, id=id_)], pagination=page) for id_, page in (("i", more), ("j", LAST))]
    for path, words in (
        ("/v1/vms", ("vms", "ls")),
        ("/v1/apps/shop/instances", ("vms", "ls", "-a", "shop")),
        ("/v1/apps/app_1/instances", ("status", "-a", "shop")),
    ):
        api.answer("GET", path, *vms)
        api.answer("GET", "/v1/apps/shop", view(AppView, id="app_1", name="shop"))
        assert machine.swg(*words, "--output", "name").out == "i\nj\n"


@pytest.mark.parametrize("nasty", ["\x1b]0;title\x07", "\x9b2J", "\u202egnp.exe", "\rforged", "\nforged"])
def test_a_node_cannot_drive_the_terminal_of_who_looks_at_it(machine: Machine, api: HandMadeApi, nasty: str) -> None:
    text = f"slow {nasty}"
    backend = view(BackendView, name=text, status="failed", reason=text)
    api.answer("GET", "/v1/nodes/one", view(NodeView, name="one", hostname=text, backends=[backend], warnings=[text]))
    shown = machine.swg("nodes", "show", "one").out
    assert shown.count("slow") == 5
    assert not set("\x1b\x07\x9b\u202e\r") & set(shown)
    assert not [line for line in shown.splitlines() if line.startswith("forged")]


def test_an_event_in_a_table_has_its_zone_and_no_id_twice(machine: Machine, api: HandMadeApi) -> None:
    data = {"app": "app_shop", "name": "shop", "instance": "ins_1", "reason": "because"}
    found = [event(1, "app_shop", resource="ins_1", data=data)]
    api.answer("GET", "/v1/events", EventList(data=found, pagination=LAST))
    line = machine.swg("events").out.splitlines()[1]
    assert "2026-01-02T03:04:05Z" in line
    assert line.endswith("ins_1     name=shop reason=because")


def test_an_empty_variable_is_told_from_none(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop/env", view(EnvView, env={"EMPTY": ""}))
    assert machine.swg("env", "ls", "-a", "shop").out.splitlines()[1] == 'EMPTY  ""'


def test_a_share_of_cpu_is_told_in_cores(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/vms/ins_1", view(InstanceView, id="ins_1", cpu_milli=1500))
    api.answer("GET", "/v1/nodes/one", view(NodeView, name="one", cpu_milli=2000))
    assert "1.5" in machine.swg("vms", "show", "ins_1").out
    passed = NetworkUsageView(
        transmit_packets=7,
        transmit_bytes=2048,
        receive_packets=5,
        receive_bytes=1024,
        dropped={"source-mac": 2, "arp": 1},
    )
    used = UsageView(
        memory_bytes=100 << 20,
        cpu_seconds=2.25,
        disk_bytes=3 << 20,
        pressure={"cpu": 0.25, "io": 0.0},
        network=passed,
    )
    api.answer("GET", "/v1/vms/ins_1", view(InstanceView, id="ins_1", usage=used))
    shown = machine.swg("vms", "show", "ins_1").out
    assert "100 MiB memory, 3.0 MiB disk, 2.2 s CPU" in shown
    assert "cpu 25%, io 0% of the last 10 s waited" in shown
    assert "2.0 KiB in 7 packets sent, 1.0 KiB in 5 received" in shown
    assert "frames: 1 arp, 2 source-mac" in shown
    assert "cpu          2\n" in machine.swg("nodes", "show", "one").out


def test_a_microvm_is_suspended_and_resumed_to_the_end_or_the_reason_is_told(
    machine: Machine, api: HandMadeApi
) -> None:
    def vm(phase: str, sleep: str, **fields: object) -> InstanceView:
        return view(InstanceView, id="ins_1", app_id="app_shop", phase=phase, sleep=sleep, **fields)

    wait = "/v1/apps/app_shop/instances/ins_1/wait"
    api.answer("GET", "/v1/vms/ins_1", vm("healthy", "awake"))
    api.answer("POST", "/v1/vms/ins_1/actions/suspend", vm("healthy", "dozing"))
    api.answer("GET", wait, vm("healthy", "asleep"), vm("asleep", "asleep"))
    ended = machine.swg("vms", "suspend", "ins_1", "--json")
    assert (ended.code, json.loads(ended.out)["phase"]) == (0, "asleep")
    api.answer("POST", "/v1/vms/ins_1/actions/resume", vm("asleep", "awake"))
    api.answer("GET", wait, vm("starting", "awake"), vm("healthy", "awake"))
    ended = machine.swg("vms", "resume", "ins_1", "--json")
    assert (ended.code, json.loads(ended.out)["phase"]) == (0, "healthy")
    api.answer("GET", wait, vm("healthy", "awake", reason="no room"))
    ended = machine.swg("vms", "suspend", "ins_1")
    assert (ended.code, "could not be suspended, and runs on: no room" in ended.err) == (1, True)
    api.answer("GET", wait, vm("failed", "asleep", reason="it died"))
    assert "ins_1 is failed: it died" in machine.swg("vms", "suspend", "ins_1").err
    assert machine.swg("vms", "suspend", "ins_1", "--detach", "--json").code == 0


def test_a_node_is_cordoned_and_opened_again(machine: Machine, api: HandMadeApi) -> None:
    for word, state in (("cordon", "cordoned"), ("uncordon", "open")):
        api.answer("POST", f"/v1/nodes/one/actions/{word}", view(NodeView, name="one", scheduling=state))
        assert json.loads(machine.swg("nodes", word, "one", "--json").out)["scheduling"] == state


def drained(
    scheduling: str, left: int = 0, *, reason: str = "drains", overdue: bool = False, **fields: object
) -> NodeView:
    waiting = [
        view(WaitingView, app="shop", process="web", slot=n, instance_id="ins_1", reason=reason) for n in range(left)
    ]
    order = view(DrainView, instances_left=left, waiting=waiting, overdue=overdue, **fields)
    return view(NodeView, id="node_1", name="one", scheduling=scheduling, drain=order if left else None)


def test_a_node_is_emptied_to_the_end_or_what_is_left_is_told(
    machine: Machine, api: HandMadeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellwego.cli.nodes._POLL_S", 0.01)
    asked = "/v1/nodes/one/actions/drain"
    api.answer("POST", asked, drained("draining", 2))
    api.answer("GET", "/v1/nodes/node_1", drained("draining", 1), drained("drained"))
    ended = machine.swg("nodes", "drain", "one", "--parallel", "3", "--deadline", "10m", "--force", "--json")
    assert (ended.code, json.loads(ended.out)["scheduling"]) == (0, "drained")
    assert json.loads(api.asked[0].body) == {"deadline": 600.0, "force": True, "parallel": 3}
    assert machine.swg("nodes", "drain", "one", "--detach", "--json").code == 0
    api.answer("GET", "/v1/nodes/node_1", drained("open"))
    ended = machine.swg("nodes", "drain", "one")
    assert (ended.code, "somebody ended the drain" in ended.err) == (1, True)
    api.answer("GET", "/v1/nodes/node_1", drained("draining", 1, overdue=True))
    ended = machine.swg("nodes", "drain", "one", "--deadline", "1s")
    assert (ended.code, "one is not empty at the deadline: 1 left" in ended.err) == (124, True)
    api.answer("GET", "/v1/nodes/one", drained("draining", 1, reason="no node fits: 1 is draining"))
    assert "left shop/web.0 (ins_1): no node fits: 1 is draining" in machine.swg("nodes", "show", "one").out


def test_keys_of_nodes_are_replaced_and_their_age_is_told(machine: Machine, api: HandMadeApi) -> None:
    began, over = datetime(2026, 1, 2, 3, tzinfo=UTC), datetime(2026, 1, 2, 3, 12, tzinfo=UTC)
    api.answer("POST", "/v1/nodes/actions/rotate-keys", view(KeyRotationView, began_at=began, over_at=over, nodes=3))
    assert "over   2026-01-02T03:12:00Z\n" in machine.swg("nodes", "rotate-keys").out
    assert json.loads(machine.swg("nodes", "rotate-keys", "--json").out)["nodes"] == 3
    keys = [TunnelKeyView(public_key=letter * 43 + "=", since=since) for letter, since in (("a", began), ("b", None))]
    api.answer("GET", "/v1/nodes/one", view(NodeView, name="one", tunnel_keys=keys))
    shown = machine.swg("nodes", "show", "one").out
    assert "aaaaaaaa (" in shown
    assert "bbbbbbbb (age unknown)" in shown
    api.answer("GET", "/v1/nodes/one", view(NodeView, name="one"))
    assert "keys" not in machine.swg("nodes", "show", "one").out


def test_a_node_is_labelled_and_removed(machine: Machine, api: HandMadeApi) -> None:
    api.answer("PATCH", "/v1/nodes/one", view(NodeView, name="one", labels={"disk": "ssd"}))
    shown = machine.swg("nodes", "label", "one", "disk=ssd", "gpu-", "--zone", "a").out
    assert "labels       disk=ssd\n" in shown
    assert json.loads(api.asked[0].body) == {"labels": {"disk": "ssd", "gpu": None}, "zone": "a"}
    for words in ((), ("disk",), ("disk=a", "disk-")):
        assert machine.swg("nodes", "label", "one", *words).code == 2
    api.answer("GET", "/v1/nodes/one", view(NodeView, id="node_1", name="one", instances=2))
    ended = machine.swg("nodes", "rm", "one", "--force")
    assert (ended.code, "2 instances that live there are lost. Nobody can be asked" in ended.err) == (2, True)
    api.answer("DELETE", "/v1/nodes/node_1", None)
    assert machine.swg("nodes", "rm", "one", "--force", "--yes").code == 0
    assert api.asked[-1].query == "force=true"


def test_moves_are_shown_first_and_made_with_a_yes(
    machine: Machine, api: HandMadeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shellwego.cli.nodes._POLL_S", 0.01)
    move = view(
        MoveView, instance_id="ins_1", app="shop", process="web", slot=0, from_node="a", to_node="b", reason="full"
    )
    planned, idle = RebalanceView(moves=[move], queued=0, moving=0), RebalanceView(moves=[], queued=0, moving=0)
    api.answer("GET", "/v1/rebalance", planned)
    ended = machine.swg("nodes", "rebalance")
    assert (ended.code, ended.out.splitlines()[1].split()) == (0, ["ins_1", "shop/web.0", "a", "b", "full"])
    assert "nothing was moved: add --yes" in ended.err
    assert {asked.method for asked in api.asked} == {"GET"}
    api.answer("POST", "/v1/rebalance", RebalanceView(moves=[move], queued=1, moving=0))
    api.answer("GET", "/v1/rebalance", planned, RebalanceView(moves=[], queued=0, moving=1), idle)
    ended = machine.swg("nodes", "rebalance", "--yes", "--json")
    assert (ended.code, json.loads(ended.out)["moves"][0]["reason"]) == (0, "full")
    assert "nothing would better run elsewhere" in machine.swg("nodes", "rebalance", "--yes").err
    api.answer("DELETE", "/v1/rebalance", None)
    assert machine.swg("nodes", "rebalance", "--cancel").code == 0


@pytest.mark.parametrize("cursor", ["again", None])
def test_a_list_whose_pages_lead_in_a_circle_ends_with_an_error(
    machine: Machine, api: HandMadeApi, cursor: str | None
) -> None:
    api.answer("GET", "/v1/apps", AppList(data=[], pagination=view(Pagination, has_more=True, next_cursor=cursor)))
    ended = machine.swg("apps", "ls")
    assert ended.code == 1
    assert "a list that does not end" in ended.err


def test_unsetting_what_is_not_set_changes_nothing_and_says_so(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop/env", view(EnvView, env={"A": "1"}))
    api.answer("PATCH", "/v1/apps/shop/env", view(EnvView, env={}))
    for flags in ((), ("--stage",)):
        ended = machine.swg("env", "unset", "NOPE", "-a", "shop", *flags)
        assert (ended.code, ended.err) == (0, "not set before: NOPE\n")
    assert json.loads(machine.swg("env", "unset", "NOPE", "-a", "shop", "--json").out) == {"A": "1"}
    assert {each.method for each in api.asked} == {"GET"}
    partly = machine.swg("env", "unset", "A", "NOPE", "-a", "shop", "--stage")
    assert partly.err == "not set before: NOPE\nnoted; the next deploy takes it along\n"
    api.refuse("GET", "/v1/apps/shop/env", 403)
    assert machine.swg("env", "unset", "A", "-a", "shop").code == 0


@pytest.mark.parametrize(
    ("words", "filters", "yet"),
    [
        ("deployments ls -a shop", ["--state failed"], "no deployments yet: swg deploy"),
        ("events", ["--type x", "--since 1m", "-a shop"], "nothing yet"),
        ("webhooks deliveries whk_1", ["--state failed"], "nothing was sent yet"),
    ],
)
def test_a_list_in_which_nothing_matches_is_not_said_to_be_empty(
    machine: Machine, api: HandMadeApi, words: str, filters: list[str], yet: str
) -> None:
    api.answer("GET", "/v1/apps/shop", view(AppView, id="app_shop"))
    api.answer("GET", "/v1/apps/shop/deployments", DeploymentList(data=[], pagination=LAST))
    api.answer("GET", "/v1/events", EventList(data=[], pagination=LAST))
    api.answer("GET", "/v1/webhooks/whk_1/deliveries", DeliveryList(data=[], pagination=LAST))
    assert machine.swg(*words.split()).err == yet + "\n"
    assert {machine.swg(*words.split(), *each.split()).err for each in filters} == {"none match\n"}


def test_a_state_that_no_deployment_has_is_a_mistake_of_use(machine: Machine, api: HandMadeApi) -> None:
    assert set(STATES) == set(DeploymentState)
    ended = machine.swg("deployments", "ls", "-a", "shop", "--state", "failed,foo")
    assert (ended.code, api.asked) == (2, [])
    assert "'foo' is no state; there are: pending," in ended.err
