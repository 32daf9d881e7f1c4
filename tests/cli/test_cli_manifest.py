"""`shellwego.toml`: what it may say, what it asks for, how wrong ones are refused; `swg launch` and `deploy` with one."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import msgspec
import pytest

from shellwego.client.generated import (
    AppList,
    AppView,
    DeploymentCreate,
    DeploymentView,
    ImageList,
    ImageView,
    PlanView,
)
from shellwego.client.manifest.deployment import deployment_of
from shellwego.client.manifest.document import Manifest
from shellwego.client.manifest.faults import ManifestError, line_of
from shellwego.client.manifest.reading import read_manifest
from shellwego.client.manifest.schema import schema_text
from tests.cli.cli_world import HandMadeApi, Machine, view

SCHEMA = Path(__file__).parents[2] / "docs/reference/shellwego.schema.json"
WHOLE = """\
app = "shop"

[build]
image = "shop:v1"

[env]
GREETING = "hello"
WORKERS = 4
DEBUG = false
DATABASE_URL = { secret = "DB_URL", version = 3 }

[deploy]
strategy = "immediate"
wait_timeout = "5m"
drain_timeout = 10
rollback_on_failure = false

[processes]
web = "gunicorn app:app --bind '0.0.0.0:8080'"
worker = ["python", "-m", "jobs"]

[http_service]
internal_port = 8080

[[checks]]
path = "/healthz"
interval = "10s"

[[vm]]
memory = "256mb"
cpu = 1

[[vm]]
process = "worker"
memory = "1gb"
cpu = "500m"
count = 3

[[restart]]
process = "worker"
policy = "on-failure"
retries = 5
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "shellwego.toml"
    path.write_text(text)
    return path


def asked(directory: Path, text: str, existing: tuple[str, ...] = ()) -> DeploymentCreate:
    path = written(directory, text)
    return deployment_of(path, path.read_text(), read_manifest(path), existing)


def refused(directory: Path, text: str) -> list[str]:
    """What is said of a wrong manifest, without the file's directory."""
    path = written(directory, text)
    with pytest.raises(ManifestError) as error:
        deployment_of(path, path.read_text(), read_manifest(path))
    return str(error.value).replace(f"{directory}/", "").splitlines()


def test_a_whole_manifest_becomes_a_deployment(tmp_path: Path) -> None:
    wish = msgspec.to_builtins(asked(tmp_path, WHOLE, ("web", "old")))
    web, worker = wish["config"]["processes"]["web"], wish["config"]["processes"]["worker"]
    assert (wish["image"], wish["strategy"], wish["wait_timeout"]) == ("shop:v1", "immediate", 300.0)
    assert (wish["rollback_on_failure"], wish["config"]["drain_timeout"]) == (False, 10.0)
    secret = {"secret": "DB_URL", "version": 3}
    assert wish["env"] == {"GREETING": "hello", "WORKERS": "4", "DEBUG": "false", "DATABASE_URL": secret}
    assert web["command"] == ["gunicorn", "app:app", "--bind", "0.0.0.0:8080"]
    assert (web["memory"], web["cpu"]) == ("256mb", "1")
    assert (worker["command"], worker["memory"], worker["cpu"]) == (["python", "-m", "jobs"], "1gb", "500m")
    assert worker["restart"] == {"policy": "on-failure", "retries": 5}
    assert wish["config"]["services"] == [{"port": 8080}]
    assert [(each["path"], each["interval"]) for each in wish["config"]["checks"]] == [("/healthz", 10.0)]
    assert wish["config"]["remove_processes"] == ["old"]
    assert wish["counts"] == {"worker": 3}
    path = tmp_path / "shellwego.toml"
    assert deployment_of(path, path.read_text(), read_manifest(path), ("worker",), ("worker",)).counts == {}


ROLLOUT = """\
app = "shop"
[deploy]
strategy = "canary"
canary_steps = [10, 50]
canary_pause = "2m"
max_unavailable = 1
surge = "50%"
release_command = "rake 'db migrate'"
[[restart]]
backoff = "10s"
"""


def test_how_to_roll_out_is_said_in_full(tmp_path: Path) -> None:
    wish = msgspec.to_builtins(asked(tmp_path, ROLLOUT))
    assert (wish["strategy"], wish["canary_steps"], wish["canary_pause"]) == ("canary", [10, 50], 120.0)
    assert (wish["max_unavailable"], wish["surge"]) == ("1", "50%")
    assert wish["config"]["release_command"] == ["rake", "db migrate"]
    assert wish["config"]["processes"]["web"]["restart"]["backoff"] == 10.0


def test_where_instances_may_go_is_said_in_full_and_nothing_said_is_anywhere(tmp_path: Path) -> None:
    text = (
        'app = "shop"\n[placement]\nregion = "eu"\nspread = "node"\npriority = 70\n[placement.require]\ndisk = "ssd"\n'
    )
    asked_for = {
        "region": "eu",
        "zone": "",
        "require": {"disk": "ssd"},
        "tolerate": {},
        "spread": "node",
        "priority": 70,
    }
    assert msgspec.to_builtins(asked(tmp_path, text))["config"]["placement"] == asked_for
    anywhere = {"region": "", "zone": "", "require": {}, "tolerate": {}, "spread": "zone", "priority": 50}
    assert msgspec.to_builtins(asked(tmp_path, 'app = "shop"\n'))["config"]["placement"] == anywhere


def test_options_of_placement_win_over_the_manifest_one_by_one(machine: Machine, api: HandMadeApi) -> None:
    written(Path(), 'app = "shop"\n[placement]\nregion = "eu"\nzone = "one"\n')
    api.answer("GET", "/v1/apps/shop", view(AppView, name="shop"))
    api.answer("POST", "/v1/apps/shop/plan", view(PlanView))
    assert machine.swg("plan", "--zone", "two").code == 0
    body = next(json.loads(each.body) for each in api.asked if each.method == "POST")
    assert body["config"]["placement"] == {
        "region": "eu",
        "zone": "two",
        "require": {},
        "tolerate": {},
        "spread": "zone",
        "priority": 50,
    }


def test_a_pause_that_makes_no_sense_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"shellwego\.toml:10: restart"):
        asked(tmp_path, ROLLOUT.replace('"10s"', '"soon"'))


def test_options_of_a_rollout_win_over_the_manifest(machine: Machine, api: HandMadeApi) -> None:
    written(Path(), ROLLOUT.replace('strategy = "canary"', 'strategy = "rolling"'))
    serve_app(api)
    ended = machine.swg("deploy", "--canary", "5,100", "--surge", "1", "--release-command", "")
    assert ended.code == 0, ended.err
    wish = sent(api, "/v1/apps/app_1/deployments")
    assert (wish["strategy"], wish["canary_steps"], wish["canary_pause"]) == ("canary", [5, 100], 120.0)
    assert (wish["max_unavailable"], wish["surge"]) == ("1", "1")
    assert isinstance(wish["config"], dict)
    assert wish["config"]["release_command"] == []


def test_what_a_manifest_does_not_name_the_app_has_not_any_more(tmp_path: Path) -> None:
    wish = msgspec.to_builtins(asked(tmp_path, 'app = "shop"', ("web", "worker")))
    assert (wish["config"]["services"], wish["config"]["checks"]) == ([], [])
    assert wish["config"]["remove_processes"] == ["worker"]
    assert wish["config"]["processes"]["web"]["command"] == []
    assert wish.get("env", {}) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("app =", ["shellwego.toml: Invalid value (at end of document)"]),
        ("ap = 'shop'", ["shellwego.toml:1: ap: there is no such key; did you mean app?"]),
        (
            "app = 'shop'\n[deploy]\nstrategi = 'rolling'",
            ["shellwego.toml:3: deploy.strategi: there is no such key; did you mean strategy?"],
        ),
        ("app = 3", ["shellwego.toml:1: app: expected a text, got a whole number"]),
        (
            "app = 'A b'",
            ["shellwego.toml:1: app: expected a text of a-z, 0-9 and -, beginning with a letter"],
        ),
        (
            "app = 'shop'\n\n[[checks]]\npath = '/'\n[[checks]]\npath = '/'\nport = 'x'",
            ["shellwego.toml:7: checks[1].port: expected a whole number, got a text"],
        ),
        (
            "app = 'shop'\n[env]\nA = 'a'\nB = [\n1]",
            [
                "shellwego.toml:4: env.B: expected true or false or a whole number or a number or a text or a table,"
                " got a list"
            ],
        ),
        (
            "app = 'shop'\n[processes]\nWeb = 'x'",
            ["shellwego.toml:3: processes.Web: expected a text of a-z, 0-9 and -, beginning with a letter"],
        ),
        (
            "app = 'shop'\n[deploy]\nwait_timeout = 'soon'",
            ["shellwego.toml:3: deploy.wait_timeout: 'soon' is no duration; write seconds, or 30s, 5m, 1h30m"],
        ),
        (
            "app = 'shop'\n[processes]\nweb = 'serve -p $PORT'\nworker = 'a \"b'",
            [
                "shellwego.toml:3: processes.web: '$' means something to a shell only, and none is run; for one, write"
                ' ["sh", "-c", \'serve -p $PORT\']',
                "shellwego.toml:4: processes.worker: its quotes are not closed: No closing quotation",
            ],
        ),
        (
            "app = 'shop'\n[http_service]\ninternal_port = 80\nprocess = 'api'",
            ["shellwego.toml:4: http_service.process: there is no process api; there is: web"],
        ),
        (
            "app = 'shop'\n[[vm]]\nmemory = '1gb'\n[[vm]]\ncpu = 1",
            ["shellwego.toml:4: vm[1]: there is an entry for processes without one of their own already"],
        ),
        (
            "app = 'shop'\n[[vm]]\nbackend = 'wasm'\n[[vm]]\nprocess = 'web'\nbackend = 'qemu'",
            ["shellwego.toml:6: vm[1].backend: all processes of an app run on one backend"],
        ),
        (
            "app = 'shop'\n[[mounts]]\nsource = 'data'\ndestination = '/data'\nprocess = 'api'\n[build]\nimage = 'x'",
            ["shellwego.toml:5: mounts[0].process: there is no process api; there is: web"],
        ),
        (
            "app = 'shop'\n[build]\ndockerfile = 'Dockerfile'",
            [
                "shellwego.toml:3: build.dockerfile: images are not built here yet: build one elsewhere, load it"
                " (swg images load), and give image",
            ],
        ),
        (
            "app = 'shop'\n[http_service]\ninternal_port = 80\nforce_https = true\nauto_stop = 'suspend'\nmin_running = 1",
            [
                "shellwego.toml:4: http_service.force_https: needs domains with certificates, which are not offered yet",
                "shellwego.toml:5: http_service.auto_stop: apps do not stop and start by themselves yet; leave it out",
                "shellwego.toml:6: http_service.min_running: apps do not stop and start by themselves yet; leave it out",
            ],
        ),
    ],
)
def test_a_wrong_manifest_is_refused_with_key_and_line(tmp_path: Path, text: str, told: list[str]) -> None:
    assert refused(tmp_path, text) == told


@pytest.mark.parametrize("content", [b"\xff", b"#" * (1024 * 1024 + 1)])
def test_what_is_no_text_of_a_sensible_size_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shellwego.toml"
    path.write_bytes(content)
    with pytest.raises(ManifestError):
        read_manifest(path)


def test_a_line_is_that_in_which_a_statement_begins() -> None:
    text = 'a = """\n[x]\nb = 1\n"""\n# more\n[x]\nb = [\n  1,\n]\nc.d = 2\n'
    assert [line_of(text, place) for place in (("a",), ("x",), ("x", "b"), ("x", "c", "d"))] == [1, 6, 7, 10]
    assert line_of(text, ("x", "nothing")) == 6
    assert line_of(text, ("nothing",)) == 0


def test_the_published_schema_is_that_of_the_code() -> None:
    """`swg manifest schema > docs/reference/shellwego.schema.json` makes it anew."""
    assert SCHEMA.read_text() == schema_text()
    assert set(json.loads(schema_text())["$defs"]["Manifest"]["properties"]) == set(Manifest.__struct_fields__)


def test_check_tells_what_a_manifest_says_without_a_platform(machine: Machine) -> None:
    written(Path(), WHOLE)
    ended = machine.swg("manifest", "check")
    assert ended.code == 0
    assert "shop:v1" in ended.out
    written(Path(), 'app = "shop"\nx = 1')
    ended = machine.swg("manifest", "check")
    assert (ended.code, "shellwego.toml:2: x: there is no such key" in ended.err) == (2, True)
    assert machine.swg("manifest", "check", "absent.toml").code == 2


def test_check_reads_stdin_as_a_file(machine: Machine) -> None:
    assert "shop:v1" in machine.swg("manifest", "check", "-", stdin=WHOLE).out
    ended = machine.swg("manifest", "check", "-", stdin='app = "shop"\nx = 1')
    assert (ended.code, "-:2: x: there is no such key" in ended.err) == (2, True)
    twice = 'app = "shop"\n[build]\nimage = "x"\n[[vm]]\nmemory = "1gb"\n[[vm]]\nmemory = "2gb"'
    late = machine.swg("manifest", "check", "-", stdin=twice)
    assert (late.code, "-:6: " in late.err) == (2, True), late.err


def test_check_waits_for_no_pipe_that_has_a_name_and_reads_those_of_a_shell(machine: Machine) -> None:
    os.mkfifo("pipe")
    holder = os.open("pipe", os.O_RDWR)  # a reader without the check ends all the same
    os.write(holder, b"x" * 4096)
    closing = threading.Timer(5, os.close, (holder,))
    closing.start()
    ended = machine.swg("manifest", "check", "pipe")
    closing.cancel()
    assert (ended.code, ended.err) == (2, "Error: pipe: it is a pipe, and no file\n")
    os.close(holder)
    out, into = os.pipe()
    os.write(into, WHOLE.encode())
    os.close(into)
    assert "shop:v1" in machine.swg("manifest", "check", f"/dev/fd/{out}").out
    os.close(out)


def serve_app(api: HandMadeApi, **fields: object) -> None:
    app = view(AppView, id="app_1", name="shop", url="http://shop.localhost", **fields)
    api.answer("GET", "/v1/apps/shop", app)
    api.answer("GET", "/v1/apps/app_1", app)
    api.answer("POST", "/v1/apps/app_1/plan", view(PlanView, to_release=1, changed=True))
    api.answer("POST", "/v1/apps/app_1/deployments", view(DeploymentView, id="dep_1", state="succeeded", finished=True))


def sent(api: HandMadeApi, path: str) -> dict[str, object]:
    """The body of the last request to a path."""
    found: dict[str, object] = json.loads([each for each in api.asked if each.path == path][-1].body)
    return found


def test_deploy_takes_the_manifest_beside_it_and_tells_the_plan(machine: Machine, api: HandMadeApi) -> None:
    written(Path(), WHOLE)
    serve_app(api)
    ended = machine.swg("deploy", "--strategy", "rolling", "-e", "DEBUG=true", "--port", "9000")
    assert ended.code == 0, ended.err
    assert "nothing → v1" in ended.err
    body = sent(api, "/v1/apps/app_1/deployments")
    assert body["env"]["DEBUG"] == "true"  # type: ignore[index]
    assert "strategy" not in body  # rolling is what is left out
    assert body["config"]["services"] == [{"port": 9000}]  # type: ignore[index]
    assert body["counts"] == {"worker": 3}


def test_deploy_of_another_app_leaves_the_manifest_beside_it_alone(machine: Machine, api: HandMadeApi) -> None:
    written(Path(), WHOLE)
    serve_app(api)
    api.answer("GET", "/v1/apps/other", view(AppView, id="app_2", name="other"))
    api.answer("POST", "/v1/apps/other/deployments", view(DeploymentView, id="dep_2", state="succeeded", finished=True))
    ended = machine.swg("deploy", "-a", "other", "-i", "x")
    assert ended.code == 0, ended.err
    assert "is of the app shop and is not used" in ended.err
    assert sent(api, "/v1/apps/other/deployments")["image"] == "x"


def test_a_deploy_of_a_wrong_manifest_asks_the_platform_nothing(machine: Machine, api: HandMadeApi) -> None:
    written(Path(), 'app = "shop"\n[http_service]\nport = 1')
    ended = machine.swg("deploy")
    assert (ended.code, api.asked) == (2, [])
    assert "shellwego.toml:3: http_service.port: there is no such key" in ended.err


def test_launch_writes_a_manifest_makes_the_app_and_deploys(machine: Machine, api: HandMadeApi) -> None:
    serve_app(api)
    app = view(AppView, id="app_1", name="shop")
    api.refuse("GET", "/v1/apps/my-shop", 404, "app-not-found")
    api.answer("GET", "/v1/images", view(ImageList, data=[view(ImageView, reference="shop:v1", exposed_ports=[8080])]))
    api.answer("POST", "/v1/apps", app, status=201)
    Path("My Shop!").mkdir()
    ended = machine.swg("launch", "My Shop!", "-i", "shop:v1", "--check-path", "/healthz", "--no-deploy")
    assert ended.code == 0, ended.err
    made = read_manifest(Path("My Shop!/shellwego.toml"))
    assert (made.app, made.build.image, made.checks[0].path) == ("my-shop", "shop:v1", "/healthz")
    assert made.http_service is not None
    assert made.http_service.internal_port == 8080
    assert sent(api, "/v1/apps") == {"name": "my-shop"}


def test_launch_of_a_manifest_goes_on_where_the_app_is_there(machine: Machine, api: HandMadeApi) -> None:
    written(Path(), WHOLE)
    serve_app(api)
    ended = machine.swg("launch")
    assert ended.code == 0, ended.err
    assert not [each for each in api.asked if (each.method, each.path) == ("POST", "/v1/apps")]
    assert sent(api, "/v1/apps/app_1/deployments")["image"] == "shop:v1"


def test_launch_without_an_image_tells_what_to_do(machine: Machine, api: HandMadeApi) -> None:
    ended = machine.swg("launch")
    assert (ended.code, "swg launch -i IMAGE --port N" in ended.err) == (2, True)
    Path("Dockerfile").write_text("FROM scratch")
    ended = machine.swg("launch")
    assert (ended.code, "docker save" in ended.err) == (2, True)
    assert not Path("shellwego.toml").exists()


def test_launch_never_overwrites_a_manifest(machine: Machine, api: HandMadeApi) -> None:
    path = written(Path(), WHOLE)
    ended = machine.swg("launch", "-i", "other:v2")
    assert (ended.code, path.read_text(), api.asked) == (2, WHOLE, [])


def test_launch_does_not_take_over_an_app_of_that_name(machine: Machine, api: HandMadeApi) -> None:
    serve_app(api)
    api.answer("GET", "/v1/apps", view(AppList))
    ended = machine.swg("launch", "-a", "shop", "-i", "x", "--port", "80")
    assert (ended.code, Path("shellwego.toml").exists()) == (5, False)
