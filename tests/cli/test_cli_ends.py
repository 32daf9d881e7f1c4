"""How commands end: the exit code of each refusal, what is said and where, and what a deployment's end means."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from shellwego.cli.remedies import LISTED_BY
from shellwego.client.generated import (
    Accepted,
    AppList,
    AppView,
    DeploymentView,
    ImageList,
    ImageView,
    InstanceList,
    InstanceView,
    LoadedView,
    LogLineView,
    LogList,
    Pagination,
    PlanView,
    UploadView,
)
from tests.cli.cli_world import NOW, HandMadeApi, Machine, commands, view

SWG = [sys.executable, "-c", "from shellwego.main import main; main()"]
APPS = "/v1/apps"
DEPLOYMENTS = "/v1/apps/shop/deployments"
DEPLOY = ("deploy", "-a", "shop", "-i", "x")


@pytest.mark.parametrize(
    ("status", "problem", "code"),
    [
        (400, "malformed", 2),
        (403, "forbidden", 3),
        (404, "not-found", 4),
        (409, "conflict", 5),
        (412, "stale", 5),
        (413, "body-too-large", 2),
        (422, "invalid", 2),
        (429, "quota", 7),
        (500, "internal", 1),
        (503, "unavailable", 1),
        (503, "no-capacity", 6),
        (422, "cannot-be-placed", 6),
    ],
)
def test_a_refusal_ends_with_the_code_of_its_kind(
    machine: Machine, api: HandMadeApi, status: int, problem: str, code: int
) -> None:
    fields = [
        {"field": "name", "code": "x", "message": "it went wrong"},
        {"field": "memory", "code": "x", "message": "too small"},
    ]
    api.refuse("GET", APPS, status, problem, resolution="Do this.", errors=fields)
    ended = machine.swg("apps", "ls")
    assert (ended.code, ended.out) == (code, "")
    assert ended.err == "Error: it went wrong\n  memory: too small\n  → Do this.\n  trace id: f00d\n"


def test_where_the_app_is_not_there_the_commands_for_it_are_named(machine: Machine, api: HandMadeApi) -> None:
    api.refuse("GET", f"{APPS}/shop", 404, "app-not-found")
    ended = machine.swg("apps", "show", "shop")
    assert ended.code == 4
    assert "→ swg apps ls shows those there are; swg apps create NAME makes one." in ended.err


@pytest.mark.parametrize(("kind", "command"), LISTED_BY.items())
def test_where_something_is_not_there_the_command_that_lists_those_there_are_is_named(
    machine: Machine, api: HandMadeApi, kind: str, command: str
) -> None:
    api.refuse("GET", APPS, 404, f"{kind}-not-found")
    assert f"→ swg {command} shows those there are" in machine.swg("apps", "ls").err
    words = tuple(word for word in command.split() if word.islower())
    assert words in dict(commands())


def test_with_json_a_failure_is_one_line_of_json_on_stderr(machine: Machine, api: HandMadeApi) -> None:
    api.refuse("GET", APPS, 404, "app-not-found", resolution="Do this.")
    told = machine.swg("apps", "ls", "--json")
    assert (told.code, told.out) == (4, "")
    assert json.loads(told.err) == {
        "code": "app-not-found",
        "message": "it went wrong",
        "resolution": "Do this.",
        "trace_id": "f00d",
        "exit_code": 4,
    }
    assert json.loads(machine.swg("status", "--json").err)["code"] == "usage"


def test_a_token_that_does_not_hold_is_answered_with_the_way_to_log_in(machine: Machine, api: HandMadeApi) -> None:
    api.refuse("GET", APPS, 401, resolution="Send “Authorization: Bearer <token>”.")
    ended = machine.swg("apps", "ls")
    assert ended.code == 3
    assert "swg login --url URL" in ended.err
    assert "Bearer" not in ended.err


@pytest.mark.parametrize("status", [404, 502])
def test_an_answer_of_something_else_is_no_refusal_of_the_api(machine: Machine, api: HandMadeApi, status: int) -> None:
    api.answer("GET", APPS, b"<html>", status=status)
    ended = machine.swg("apps", "ls")
    assert ended.code == 1
    assert f"HTTP {status}, and not from the API" in ended.err


@pytest.mark.parametrize("name", ["a/b", "..", "."])
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("apps show NAME", "app"),
        ("env ls -a NAME", "app"),
        ("exec -a NAME -- true", "app"),
        ("nodes show NAME", "node"),
        ("vms show NAME", "instance"),
    ],
)
def test_what_can_be_no_name_is_not_asked_for(
    machine: Machine, api: HandMadeApi, words: str, kind: str, name: str
) -> None:
    ended = machine.swg(*words.replace("NAME", name).split())
    assert (ended.code, api.asked) == (2, [])
    assert f"“{name}” can be neither the name nor the id of the {kind}" in ended.err
    assert "have no slash" in ended.err


def test_an_image_that_is_not_there_is_told_by_its_name(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/images", ImageList(data=[], pagination=view(Pagination)))
    ended = machine.swg("images", "rm", "registry.example/shop:v1")
    assert ended.code == 4
    assert "the project has no image “registry.example/shop:v1”" in ended.err


def test_a_platform_that_is_down_is_told_with_its_url(machine: Machine) -> None:
    machine.context("gone", "http://127.0.0.1:1")
    ended = machine.swg("apps", "ls")
    assert ended.code == 1
    assert "the API at http://127.0.0.1:1 cannot be reached" in ended.err
    assert "swg doctor" in ended.err


def deployment(state: str, **fields: object) -> DeploymentView:
    finished = state not in ("pending", "in_progress")
    return view(DeploymentView, id="dep_1", state=state, finished=finished, release=2, wait_timeout=5.0, **fields)


@pytest.mark.parametrize(
    ("state", "reason_code", "code"),
    [
        ("succeeded", "", 0),
        ("rolled_back", "check-failed", 8),
        ("failed", "wait-timeout", 8),
        ("failed", "no-capacity", 6),
        ("superseded", "", 8),
        ("cancelled", "", 8),
    ],
)
def test_a_deployment_is_followed_to_its_end(
    machine: Machine, api: HandMadeApi, state: str, reason_code: str, code: int
) -> None:
    api.answer("POST", DEPLOYMENTS, deployment("pending", stage="admission"), status=202)
    end = deployment(state, stage="checking", reason="because", reason_code=reason_code, log_tail=["last words"])
    api.answer("GET", f"{DEPLOYMENTS}/dep_1/wait", deployment("in_progress", stage="starting", reason="boots"), end)
    running = {"web": 1} if state != "failed" else {}
    differs = state in ("rolled_back", "cancelled")
    app = view(AppView, name="shop", url="http://shop.localhost", running=running, config_differs=differs)
    api.answer("GET", "/v1/apps/shop", app)
    ended = machine.swg(*DEPLOY, "--json")
    assert ended.code == code
    assert "admission" in ended.err
    assert "starting   boots" in ended.err
    if code:
        assert json.loads(ended.err.splitlines()[-1])["message"].endswith("of its output:\n  | last words")
        assert ended.out == ""
        assert ("goes on serving" in ended.err) == (state in ("rolled_back", "cancelled"))
        assert ("Nothing of the app serves now." in ended.err) == (state == "failed")
        assert ("config keeps the change: mend it and deploy, or: swg rollback" in ended.err) == differs
    else:
        assert json.loads(ended.out)["url"] == "http://shop.localhost"


@pytest.mark.parametrize(
    ("state", "number", "differs", "told"),
    [
        ("rolled_back", 3, True, "still has the changes of v3, which did not succeed; v2 runs."),
        ("succeeded", 2, True, "has changes that v2 has not: swg deploy rolls them out"),
        ("in_progress", 3, True, ""),
        ("succeeded", 2, False, ""),
    ],
)
def test_status_and_plan_tell_of_a_config_that_does_not_run(
    machine: Machine, api: HandMadeApi, state: str, number: int, *, differs: bool, told: str
) -> None:
    last = view(
        DeploymentView, id="dep_1", state=state, finished=state != "in_progress", release=number, stage="admission"
    )
    app = view(AppView, id="app_1", name="shop", release=2, deployment_id="dep_1", config_differs=differs)
    for name in ("shop", "app_1"):
        api.answer("GET", f"/v1/apps/{name}", app)
    api.answer("GET", "/v1/apps/app_1/deployments/dep_1", last)
    api.answer("GET", "/v1/apps/app_1/instances", InstanceList(data=[], pagination=view(Pagination)))
    api.answer("POST", "/v1/apps/shop/plan", view(PlanView, changed=True, to_release=4))
    shown, planned = machine.swg("status", "-a", "shop"), machine.swg("plan", "-a", "shop")
    assert (shown.code, planned.code) == (0, 0)
    assert "shop.internal" in shown.out
    for said in (shown.out, planned.err):
        assert told in said
        assert bool(told) == ("config" in said)
    finished = state == "succeeded"
    assert (f"{state} (admission)" in shown.out) == (not finished), "what is done is at no stage"


def test_a_deployment_that_never_ends_is_given_up(machine: Machine, api: HandMadeApi) -> None:
    late = view(DeploymentView, id="dep_1", state="in_progress", deadline=NOW - timedelta(seconds=100))
    api.answer("POST", DEPLOYMENTS, late, status=202)
    assert machine.swg(*DEPLOY).code == 124


def test_quiet_says_nothing_but_the_result(machine: Machine, api: HandMadeApi) -> None:
    api.answer("POST", DEPLOYMENTS, deployment("succeeded"), status=202)
    api.answer("GET", "/v1/apps/shop", view(AppView, name="shop", url="http://shop.localhost"))
    ended = machine.swg(*DEPLOY, "-q", "--output", "name")
    assert (ended.code, ended.out, ended.err) == (0, "dep_1\n", "")


def test_what_cannot_be_undone_needs_yes_where_nobody_can_be_asked(machine: Machine, api: HandMadeApi) -> None:
    api.answer("GET", "/v1/apps/shop", view(AppView, id="app_1", name="shop"))
    ended = machine.swg("apps", "destroy", "shop")
    assert ended.code == 2
    assert "Add --yes." in ended.err
    assert {asked.method for asked in api.asked} == {"GET"}
    api.answer("DELETE", "/v1/apps/app_1", view(Accepted), status=202)
    assert machine.swg("apps", "destroy", "shop", "--yes", "--detach").code == 0


def test_a_stop_waits_until_nothing_lives(machine: Machine, api: HandMadeApi) -> None:
    app = view(AppView, id="app_1", name="shop", state="stopped")
    api.answer("POST", "/v1/apps/shop/actions/stop", view(Accepted, app=app), status=202)
    api.answer("GET", "/v1/apps/app_1/wait", app)
    none = InstanceList(data=[], pagination=view(Pagination))
    one = InstanceList(data=[view(InstanceView)], pagination=view(Pagination))
    api.answer("GET", "/v1/apps/app_1/instances", one, one, none)
    ended = machine.swg("apps", "stop", "shop")
    assert ended.code == 0
    assert ended.err == "  stopping\n", "what goes on, not the state that was asked for"
    assert [asked.path for asked in api.asked].count("/v1/apps/app_1/instances") == 3


def test_why_an_instance_waits_for_a_node_is_told_while_a_scale_goes_on(machine: Machine, api: HandMadeApi) -> None:
    short = view(AppView, id="app_1", name="shop", state="degraded", release=1, counts={"web": 2}, running={"web": 1})
    api.answer("POST", "/v1/apps/shop/scale", view(Accepted, app=short), status=202)
    api.answer("GET", "/v1/apps/shop", short)
    api.answer("GET", "/v1/apps/app_1/wait", short, msgspec.structs.replace(short, state="running", running={"web": 2}))
    waits = view(InstanceView, phase="pending", reason="no node fits: 1 lacks memory")
    api.answer("GET", "/v1/apps/app_1/instances", InstanceList(data=[waits], pagination=view(Pagination)))
    ended = machine.swg("scale", "-a", "shop", "web=2")
    assert (ended.code, ended.err) == (0, "  placing    web 1/2: no node fits: 1 lacks memory\n")


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["sleeping"], 0),
        (["failed", "failed", "deploying", "failed", "running"], 0),
        (["deploying", "failed", "failed", "failed", "running"], 8),
    ],
)
def test_a_start_is_over_when_the_app_sleeps_and_failed_when_it_seems_so_for_a_while(
    machine: Machine, api: HandMadeApi, monkeypatch: pytest.MonkeyPatch, states: list[str], code: int
) -> None:
    monkeypatch.setattr("shellwego.cli.apps._SETTLE_S", 5.0)
    seen = [
        view(AppView, id="app_1", name="shop", state=each, counts={"web": 1}, running={"web": 1}) for each in states
    ]
    api.answer("POST", "/v1/apps/shop/actions/start", view(Accepted, app=seen[0]), status=202)
    api.answer("GET", "/v1/apps/app_1/wait", *seen)
    api.answer("GET", "/v1/apps/app_1/instances", InstanceList(data=[], pagination=view(Pagination)))
    ended = machine.swg("apps", "start", "shop")
    assert ended.code == code, ended.err


def test_logs_and_detached_runs_are_one_document_with_json(machine: Machine, api: HandMadeApi) -> None:
    lines = [view(LogLineView, text=text) for text in ("one", "two")]
    api.answer("GET", "/v1/apps/shop/logs", LogList(data=lines))
    assert [line["text"] for line in json.loads(machine.swg("logs", "-a", "shop", "--json").out)] == ["one", "two"]
    api.answer("POST", "/v1/apps/shop/runs", view(InstanceView, id="ins_1"), status=202)
    run = ("run", "-a", "shop", "--detach")
    assert machine.swg(*run, "true").out == "ins_1\n"
    assert json.loads(machine.swg(*run, "--json", "true").out)["id"] == "ins_1"


@pytest.mark.parametrize(
    ("reason_code", "code", "ends"),
    [("exited", 3, 3), ("no-such-command", 127, 127), ("oom", 137, 137), ("vmm-died", None, 1)],
)
def test_a_run_ends_with_its_code_and_any_end_but_its_own_is_explained(
    machine: Machine, api: HandMadeApi, reason_code: str, code: int | None, ends: int
) -> None:
    over = view(InstanceView, id="ins_1", phase="failed", exit_code=code, reason_code=reason_code, reason="because")
    api.answer("POST", "/v1/apps/shop/runs", over, status=202)
    api.refuse("GET", "/v1/apps/shop/logs", 409, "no-logs")
    ended = machine.swg("run", "-a", "shop", "-q", "nonsense")
    assert (ended.code, ended.err) == (ends, "" if reason_code == "exited" else "Error: because\n")
    assert "its output cannot be read: it went wrong" in machine.swg("run", "-a", "shop", "nonsense").err


def test_an_interactive_run_in_an_image_that_cannot_hold_it_says_what_it_needs(
    machine: Machine, api: HandMadeApi
) -> None:
    over = view(InstanceView, id="ins_1", phase="failed", exit_code=127, reason="sleep was not found in the image")
    api.answer("POST", "/v1/apps/shop/runs", over, status=202)
    api.answer("DELETE", "/v1/apps/shop/runs/ins_1", over)
    ended = machine.swg("run", "-a", "shop", "-it", "--", "sh")
    assert ended.code == 1
    assert "sleep was not found in the image" in ended.err
    assert "leave out -i and -t" in ended.err
    assert machine.swg("run", "-a", "shop", "-i", "--detach", "sh").code == 2


def test_an_app_cannot_drive_the_terminal_of_who_reads_its_log(machine: Machine, api: HandMadeApi) -> None:
    line = view(
        LogLineView, text="\x1b]0;title\x07 \x1b[31mred\x1b[0m \x1b[2J\r", process="web", instance_id="ins_abcdef"
    )
    api.answer("GET", "/v1/apps/shop/logs", LogList(data=[line]))
    shown = machine.swg("logs", "-a", "shop").out
    assert not {"\x07", "\r", "\x1b"} & set(shown)
    assert "red" in shown


@pytest.mark.parametrize("output", ["table", "json", "yaml", "name"])
@pytest.mark.parametrize("nasty", ["\x1b]0;title\x07", "\x9b2J", "\u202egnp.exe", "\x90q\x9c", "\rforged"])
def test_a_reason_that_a_guest_or_registry_wrote_cannot_drive_the_terminal(
    machine: Machine, api: HandMadeApi, nasty: str, output: str
) -> None:
    end = deployment("failed", stage="checking", reason=f"because {nasty}", log_tail=[f"last {nasty} words"])
    api.answer("POST", DEPLOYMENTS, end, status=202)
    api.answer("GET", "/v1/apps/shop", view(AppView, name="shop"))
    failed = machine.swg("deploy", "-a", "shop", "-i", "shop:v2", "--output", output)
    assert "because" in failed.err
    assert "words" in failed.err
    image = view(ImageView, id="img_1", reference="shop:v1", state="failed", reason=f"because {nasty}")
    api.answer("GET", "/v1/images", ImageList(data=[image], pagination=view(Pagination)))
    listed = machine.swg("images", "ls", "--output", output)
    line = view(LogLineView, text=f"said {nasty}", process="web", instance_id="ins_abcdef")
    api.answer("GET", "/v1/apps/shop/logs", LogList(data=[line]))
    logged = machine.swg("logs", "-a", "shop", "--output", output)
    assert not set("\x1b\x07\x9b\x90\x9c\u202e\r") & set(failed.err + listed.out + logged.out)


@pytest.mark.parametrize("nasty", ["\x1b]52;c;Y3VybA==\x07", "\x9b2J", "\u202egnp.exe", "\rforged"])
def test_what_a_guest_or_another_told_last_cannot_drive_the_terminal(
    machine: Machine, api: HandMadeApi, nasty: str
) -> None:
    over = view(InstanceView, id="ins_1", phase="failed", exit_code=3, reason_code="exited", log_tail=[f"last {nasty}"])
    api.answer("GET", "/v1/vms/ins_1", over)
    shown = machine.swg("vms", "show", "ins_1")
    api.answer("POST", "/v1/apps/shop/runs", over, status=202)
    api.refuse("GET", "/v1/apps/shop/logs", 409, "no-logs", detail=f"not read {nasty}")
    run = machine.swg("run", "-a", "shop", "nonsense")
    api.answer("GET", f"{APPS}/shop", view(AppView, name=f"named {nasty}"))
    named = machine.swg("apps", "show", "shop", "--output", "name")
    told = shown.out + run.err + named.out
    assert all(words in told for words in ("last ", "not read ", "named "))
    assert not set("\x1b\x07\x9b\u202e\r") & set(told)


def test_machines_read_what_was_written(machine: Machine, api: HandMadeApi) -> None:
    line = view(LogLineView, text="\x9b2J \u202e", process="web", instance_id="ins_abcdef")
    api.answer("GET", "/v1/apps/shop/logs", LogList(data=[line]))
    assert json.loads(machine.swg("logs", "-a", "shop", "--json").out)[0]["text"] == "\x9b2J \u202e"


def test_an_interrupted_command_ends_with_130_and_leaves_the_deployment(machine: Machine, api: HandMadeApi) -> None:
    api.answer("POST", DEPLOYMENTS, deployment("pending"), status=202)
    api.answer("GET", f"{DEPLOYMENTS}/dep_1/wait", deployment("in_progress"))
    process = subprocess.Popen(
        [*SWG, *DEPLOY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(machine.home)},
    )
    deadline = time.monotonic() + 20
    while not any("wait" in asked.path for asked in api.asked) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "the deployment goes on without us; see: swg status -a shop" in err
    assert "Traceback" not in err


def test_a_reader_that_goes_away_ends_a_command_in_silence(machine: Machine, api: HandMadeApi) -> None:
    apps = [view(AppView, name=f"app-{number}") for number in range(2000)]
    api.answer("GET", APPS, AppList(data=apps, pagination=view(Pagination)))
    process = subprocess.Popen(
        [*SWG, "apps", "ls"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CONFIG_HOME": str(machine.home)},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) == 1


def test_a_result_that_cannot_be_written_is_told_in_the_form_that_was_asked_for(
    machine: Machine, api: HandMadeApi
) -> None:
    api.answer("GET", APPS, AppList(data=[view(AppView, name="shop")], pagination=view(Pagination)))

    def told(*words: str) -> str:
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [*SWG, "apps", "ls", *words],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "XDG_CONFIG_HOME": str(machine.home)},
                check=False,
            )
        assert ended.returncode == 1
        return ended.stderr

    message = "No space left on device"
    assert json.loads(told("--json")) == {"code": "failed", "message": message, "exit_code": 1}
    assert told() == f"Error: {message}\n"


def test_a_module_given_as_a_file_is_loaded_and_deployed_where_modules_run(
    machine: Machine, api: HandMadeApi, tmp_path: Path
) -> None:
    module = tmp_path / "job.wasm"
    module.write_bytes(b"\0asm\x01\0\0\0")
    upload = view(UploadView, id="upl_1", chunk_bytes=1 << 20)
    api.answer("POST", "/v1/images/uploads", upload, status=201)
    api.answer("PATCH", "/v1/images/uploads/upl_1", upload)
    loaded = LoadedView(data=[view(ImageView, reference="shop:module")])
    api.answer("PUT", "/v1/images/uploads/upl_1", loaded, status=201)
    api.answer("POST", DEPLOYMENTS, deployment("pending", stage="admission"), status=202)
    api.answer("GET", "/v1/apps/shop", view(AppView, name="shop", running={}))
    ended = machine.swg("deploy", "-a", "shop", "-i", str(module), "--detach")
    assert ended.code == 0, ended.err
    asked = {(each.method, each.path): each for each in api.asked}
    assert "name=shop%3Amodule" in asked["POST", "/v1/images/uploads"].query
    assert asked["PATCH", "/v1/images/uploads/upl_1"].body == module.read_bytes()
    wish = json.loads(asked["POST", DEPLOYMENTS].body)
    assert (wish["image"], wish["backend"]) == ("shop:module", "wasm")


def test_a_module_that_is_not_there_is_a_mistake_of_use(machine: Machine, api: HandMadeApi) -> None:
    ended = machine.swg("deploy", "-a", "shop", "-i", "/nothing/job.wasm")
    assert ended.code == 2
    assert "/nothing/job.wasm cannot be read: No such file" in ended.err
    assert api.asked == []


def test_a_plan_takes_no_module_that_is_not_loaded_and_says_how_it_can_be(
    machine: Machine, api: HandMadeApi, tmp_path: Path
) -> None:
    api.answer("GET", "/v1/apps/shop", view(AppView, id="app_1", name="shop"))
    manifest = tmp_path / "shellwego.toml"
    manifest.write_text('app = "shop"\n[build]\nimage = "job.wasm"\n')
    for words in (("-a", "shop", "-i", "job.wasm"), (str(tmp_path),)):
        ended = machine.swg("plan", *words)
        assert (ended.code, ended.out) == (2, "")
        assert "job.wasm is a file: a plan loads nothing" in ended.err
        assert "swg images load NAME job.wasm" in ended.err
    assert "POST" not in {each.method for each in api.asked}
    assert "FILE.wasm" not in machine.swg("plan", "--help").out
    assert "FILE.wasm" in machine.swg("deploy", "--help").out
