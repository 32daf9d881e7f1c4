"""How a rollout is asked for on the command line, and how deployments and releases are shown."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from shellwego.client.generated import (
    AppView,
    CanaryView,
    ChangeView,
    DeploymentList,
    DeploymentView,
    DiffView,
    Pagination,
    PlanView,
    ProcessPlanView,
    ReleaseList,
    ReleaseView,
    StageView,
)
from tests.cli.cli_world import NOW, HandMadeApi, Machine, view

SHOP = ("-a", "shop", "--detach")
DEPLOYMENTS = "/v1/apps/shop/deployments"
LAST = view(Pagination)


def asked(machine: Machine, api: HandMadeApi, *words: str) -> dict[str, object]:
    """The body that a command sent."""
    api.answer("GET", "/v1/apps/shop", view(AppView, name="shop"))
    for path in (DEPLOYMENTS, "/v1/apps/shop/actions/rollback"):
        api.answer("POST", path, view(DeploymentView, id="dep_1"), status=202)
    ended = machine.swg(words[0], *SHOP, *words[1:])
    assert ended.code == 0, ended.err
    body: dict[str, object] = next(json.loads(each.body) for each in api.asked if each.method == "POST")
    return body


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("--strategy", "bluegreen"), {"strategy": "bluegreen"}),
        (("--max-unavailable", "1", "--surge", "50%"), {"max_unavailable": "1", "surge": "50%"}),
        (("--canary", "10,50,100"), {"strategy": "canary", "canary_steps": [10, 50, 100]}),
        (("--strategy", "canary", "--canary-pause", "5"), {"strategy": "canary", "canary_pause": 5.0}),
        (("--release-command", "rake 'db migrate'"), {"config": {"release_command": ["rake", "db migrate"]}}),
        (("--release-command", ""), {"config": {"release_command": []}}),
        (
            ("--region", "eu", "--require", "disk=ssd", "--require", "gpu="),
            {"config": {"placement": {"region": "eu", "require": {"disk": "ssd", "gpu": ""}}}},
        ),
        (
            ("--zone", "", "--require", "", "--tolerate", "gpu=yes", "--spread", "none"),
            {"config": {"placement": {"zone": "", "require": {}, "tolerate": {"gpu": "yes"}, "spread": "none"}}},
        ),
        (("--priority", "20"), {"config": {"placement": {"priority": 20}}}),
    ],
    ids=" ".join,
)
def test_a_deploy_is_asked_for_with_its_numbers(
    machine: Machine, api: HandMadeApi, words: tuple[str, ...], expected: dict[str, object]
) -> None:
    body = asked(machine, api, "deploy", *words)
    assert {name: value for name, value in body.items() if value != {}} == {"wait_timeout": 300.0, **expected}


def test_a_rollback_has_the_same_numbers(machine: Machine, api: HandMadeApi) -> None:
    body = asked(machine, api, "rollback", "v3", "--strategy", "immediate")
    assert body == {"release": "v3", "strategy": "immediate", "wait_timeout": 300.0}


@pytest.mark.parametrize("steps", ["ten", "10,,50", "10;50", "-5"])
def test_steps_that_are_no_percentages_are_refused(machine: Machine, api: HandMadeApi, steps: str) -> None:
    ended = machine.swg("deploy", *SHOP, "--canary", steps)
    assert (ended.code, api.asked) == (2, [])
    assert "is not a list of percentages" in ended.err


def test_a_plan_tells_each_process_and_what_is_in_its_way(machine: Machine, api: HandMadeApi) -> None:
    processes = [
        ProcessPlanView(process="web", count=3, kept=1, started=2, stopped=1, obstacle=None, evicts=0, pause=None),
        ProcessPlanView(
            process="worker",
            count=1,
            kept=0,
            started=1,
            stopped=0,
            obstacle="no node fits: 1 lacks memory",
            evicts=0,
            pause=None,
        ),
        ProcessPlanView(
            process="job", count=1, kept=0, started=1, stopped=0, obstacle="no node fits: …", evicts=2, pause=None
        ),
    ]
    api.answer("GET", "/v1/apps/shop", view(AppView, name="shop"))
    planned = view(PlanView, changed=True, from_release=3, to_release=4, processes=processes)
    api.answer("POST", "/v1/apps/shop/plan", planned)
    ended = machine.swg("plan", "-a", "shop", "--detailed-exitcode")
    assert ended.code == 10
    assert "web: 1 stay, 2 come, 1 go\n" in ended.out
    assert "worker could not be placed now: no node fits: 1 lacks memory" in ended.out
    assert "job would evict 2 of lower priority: no node fits: …" in ended.out


def a_deployment() -> DeploymentView:
    later = NOW + timedelta(seconds=1.5)
    stages = [
        StageView(stage="release_command", reason="runs the release command", started_at=NOW, finished_at=later),
        StageView(stage="shifting", reason="canary step 1 of 2", started_at=later, finished_at=None),
    ]
    canary = CanaryView(steps=[10, 50], pause=60.0, step=0, weight=10, holds_since=None)
    return view(
        DeploymentView, id="dep_1", release=4, state="in_progress", stage="shifting", stages=stages, canary=canary
    )


def test_the_newest_deployment_is_shown_with_its_stages(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", DEPLOYMENTS, DeploymentList(data=[a_deployment()], pagination=LAST))
    out = machine.swg("deployments", "show", "-a", "shop").out
    assert "10 %, 50 %, 60 s each; now 10 %" in out
    assert "release_command  1.5 s" in out
    assert "goes on" in out
    listed = machine.swg("deployments", "ls", "-a", "shop", "--output", "name").out
    assert listed == "dep_1\n"


def test_the_newest_deployment_is_cancelled(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", DEPLOYMENTS, DeploymentList(data=[a_deployment()], pagination=LAST))
    over = view(DeploymentView, id="dep_1", state="cancelled")
    api.answer("POST", f"{DEPLOYMENTS}/dep_1/actions/cancel", over)
    assert "cancelled" in machine.swg("deployments", "cancel", "-a", "shop").out


def test_without_a_deployment_there_is_nothing_to_show(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", DEPLOYMENTS, DeploymentList(data=[], pagination=LAST))
    ended = machine.swg("deployments", "show", "-a", "shop")
    assert (ended.code, "never deployed" in ended.err) == (4, True)


def test_two_releases_are_compared_from_the_first_to_the_second(machine: Machine, api: HandMadeApi) -> None:
    changes = [ChangeView(field="processes.web.env.KEY", before="(set)", after=None)]
    api.answer("GET", "/v1/apps/shop/releases/v4/diff", DiffView(from_release=3, to_release=4, changes=changes))
    out = machine.swg("releases", "diff", "v3", "v4", "-a", "shop").out
    assert "processes.web.env.KEY" in out
    assert api.asked[-1].query == "against=v3"


@pytest.mark.parametrize(
    "words",
    [
        ("releases", "-a", "shop"),
        ("-a", "shop", "releases"),
        ("-a", "shop", "releases", "-n", "5"),
        ("releases", "ls", "-a", "shop"),
    ],
)
def test_releases_are_listed_by_their_name_alone(machine: Machine, api: HandMadeApi, words: tuple[str, ...]) -> None:
    api.answer("GET", "/v1/apps/shop/releases", ReleaseList(data=[view(ReleaseView, number=7)], pagination=LAST))
    assert machine.swg(*words, "--output", "name").out == "v7\n"


def test_a_label_without_a_value_is_refused_before_anything_is_asked(machine: Machine, api: HandMadeApi) -> None:
    ended = machine.swg("deploy", *SHOP, "--require", "ssd")
    assert (ended.code, api.asked) == (2, [])
    assert "'ssd' is not LABEL=VALUE" in ended.err
