"""`swg doctor`: each thing that is not well has its line and its remedy, and a failure its exit code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from plasmavmc.backends import Acceleration
from plasmavmc.errors import HostError
from plasmavmc.host import installation
from plasmavmc.hypervisor.probe import ProbeResult, Trial
from shellwego.boot import hostchecks
from shellwego.boot.configfile import config_file_values
from shellwego.boot.doctor import print_findings
from shellwego.boot.findings import Finding, State
from shellwego.boot.namechecks import check_names
from shellwego.boot.platformchecks import check_platform
from shellwego.boot.settings import UpSettings
from shellwego.boot.up import up_settings
from shellwego.client.generated import BackendView, NodeList, NodeView, Pagination, UserView, VersionView
from shellwego.core.errors import InvalidError
from shellwego.core.nodes import Offer
from tests.cli.cli_world import HandMadeApi, Machine, view


def node(**fields: object) -> NodeView:
    ready = view(BackendView, name="kvm", status="ready", acceleration="kvm")
    return view(NodeView, **{"name": "one", "health": "ready", "scheduling": "open", "backends": [ready], **fields})


def well(api: HandMadeApi, *nodes: NodeView) -> None:
    api.answer("GET", "/v1/version", view(VersionView, version="1.2"))
    api.answer("GET", "/v1/user", view(UserView, email="me@x"))
    api.answer("GET", "/v1/nodes", NodeList(data=list(nodes), pagination=view(Pagination)))


def states(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.state.value) for finding in found]


def test_what_a_node_says_of_itself_cannot_drive_the_terminal(
    machine: Machine, api: HandMadeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    well(api, node(warnings=["slow \x1b]0;title\x07\rforged — wait \x9b2J"]))
    print_findings(check_platform(machine.config, ""), quiet=False, color=False)
    shown = capsys.readouterr().out
    assert "slow" in shown
    assert "wait" in shown
    assert not set("\x1b\x07\x9b\r") & set(shown)


def test_a_platform_that_is_well_has_no_warning(machine: Machine, api: HandMadeApi) -> None:
    well(api, node())
    found = check_platform(machine.config, "")
    assert states(found) == [(check, "ok") for check in ("context", "api", "token", "node one")]


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        (node(health="down"), State.FAIL, "down"),
        (node(scheduling="draining"), State.WARN, "takes no new instances"),
        (node(warnings=["it is slow"]), State.WARN, "it is slow"),
        (
            node(backends=[view(BackendView, name="kvm", status="failed", reason="no program")]),
            State.FAIL,
            "no program",
        ),
        (node(backends=[]), State.FAIL, "no backend"),
    ],
)
def test_a_node_that_is_not_well_is_told(
    machine: Machine, api: HandMadeApi, seen: NodeView, state: State, words: str
) -> None:
    well(api, seen)
    worst = next(finding for finding in check_platform(machine.config, "") if finding.state is not State.OK)
    assert worst.state is state
    assert words in worst.message


def test_a_warning_of_a_node_has_its_remedy_below(machine: Machine, api: HandMadeApi) -> None:
    well(api, node(warnings=["it is slow: no device — mend it"]))
    worst = check_platform(machine.config, "")[-1]
    assert (worst.message, worst.remedy) == ("it is slow: no device", "mend it")


@pytest.mark.parametrize(("uid", "words"), [(0, "not probed on this host yet"), (65534, "root's to read")])
def test_a_probe_that_cannot_be_seen_is_none_for_root_only(
    monkeypatch: pytest.MonkeyPatch, uid: int, words: str
) -> None:
    monkeypatch.setattr(hostchecks, "KVM_DEVICE", Path("/dev/null"))
    monkeypatch.setattr(hostchecks, "probed", lambda cache: None)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    found = {each.check: each for each in hostchecks.check_host(UpSettings())}
    assert words in found["kvm"].message


def test_an_emulated_cpu_is_told_with_its_remedy_below(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = (
        Trial(Acceleration.KVM, 0.1, "only root can open /dev/kvm — chmod it"),
        Trial(Acceleration.TCG, 5.0),
    )
    monkeypatch.setattr(hostchecks, "KVM_DEVICE", Path("/dev/null"))
    monkeypatch.setattr(hostchecks, "probed", lambda cache: ProbeResult(trials))
    found = {each.check: each for each in hostchecks.check_host(UpSettings())}
    assert found["kvm"].message.startswith("only root can open /dev/kvm: VMs are emulated")
    assert found["kvm"].remedy == "chmod it"


def encrypting(monkeypatch: pytest.MonkeyPatch, by: str) -> Finding:
    """What is found where WireGuard is asked for, and this is what is there."""

    def ask() -> str:
        if not by:
            raise HostError("no-wireguard", "nobody encrypts", resolution="install something")
        return by

    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(installation, "check_wireguard", ask)
    found = {each.check: each for each in hostchecks.check_host(UpSettings(underlay="wireguard"))}
    return found["underlay"]


def test_who_encrypts_between_nodes_is_told_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "underlay" not in {each.check for each in hostchecks.check_host(UpSettings())}
    assert encrypting(monkeypatch, "kernel").state is State.OK
    slow, nobody = encrypting(monkeypatch, "wireguard-go"), encrypting(monkeypatch, "")
    assert (slow.state, "far slower" in slow.message) == (State.WARN, True)
    assert (nobody.state, nobody.message, nobody.remedy) == (State.FAIL, "nobody encrypts", "install something")


def test_what_a_failed_check_makes_pointless_is_left_out(machine: Machine, api: HandMadeApi) -> None:
    well(api)
    assert states(check_platform(machine.config, ""))[-1] == ("nodes", "fail")
    api.refuse("GET", "/v1/user", 401)
    assert states(check_platform(machine.config, ""))[-1] == ("token", "fail")
    machine.context("gone", "http://127.0.0.1:1")
    assert states(check_platform(machine.config, ""))[-1] == ("api", "fail")
    assert states(check_platform(machine.config, "nobody")) == [("context", "fail")]


def test_a_context_file_that_others_can_read_is_a_warning(machine: Machine, api: HandMadeApi) -> None:
    well(api, node())
    machine.config.chmod(0o644)
    (first, *_) = check_platform(machine.config, "")
    assert (first.state, first.remedy) == (State.WARN, f"chmod 600 {machine.config}")


def test_a_fresh_machine_has_no_platform_and_that_is_no_failure(machine: Machine) -> None:
    (only,) = check_platform(machine.config, "")
    assert only.state is State.WARN
    assert "swg up" in only.remedy


def test_an_empty_cache_fails_and_says_how_to_fill_it(tmp_path: Path) -> None:
    found = {each.check: each for each in hostchecks.check_host(replace(UpSettings(), cache=tmp_path))}
    assert found["guest"].state is State.FAIL
    assert "scripts/setup" in found["guest"].remedy
    assert found["disk"].state is not State.FAIL


def test_a_full_disk_fails() -> None:
    (disk,) = (each for each in hostchecks.check_host(UpSettings(data_dir=Path("/proc/x"))) if each.check == "disk")
    assert disk.state is State.FAIL
    assert "--data-dir" in disk.remedy


@pytest.mark.parametrize("below", ["", "below"])
def test_a_data_directory_that_is_a_file_fails_wherever_it_is_needed(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.touch()
    found = {each.check: each for each in hostchecks.check_host(UpSettings(data_dir=file / below))}
    for check in ("disk", "volumes", "master key"):
        assert found[check].state is State.FAIL, check
        assert "--data-dir" in found[check].remedy
    assert found["disk"].message == found["volumes"].message == f"{file} is no directory"
    assert "Errno" not in found["master key"].message


def test_json_is_one_document_and_a_failure_ends_with_1(machine: Machine, api: HandMadeApi, tmp_path: Path) -> None:
    well(api, node())
    ended = machine.swg("doctor", "--json", SHELLWEGO_CACHE=str(tmp_path))
    document = json.loads(ended.out)
    assert (ended.code, ended.err, document["ok"]) == (1, "", False)
    assert {"check": "token", "state": "ok", "message": "it is me@x's", "remedy": ""} in document["checks"]
    shown = machine.swg("doctor", "-q", SHELLWEGO_CACHE=str(tmp_path))
    assert shown.code == 1
    assert "fail  guest" in shown.out
    assert "→ Run: scripts/setup" in shown.out
    assert "ok  " not in shown.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"http_port": 0}, "--http-port: 0"),
        ({"http_port": 65536}, "--http-port: 65536"),
        ({"http_port": 7080}, "must differ"),
        ({"domain": "a..b"}, "--domain"),
        ({"domain": "-a"}, "--domain"),
        ({"api_listen": "192.0.2.1"}, "without TLS"),
        ({"api_cert": Path("x")}, "go together"),
        ({"http_port": "many"}, "SHELLWEGO_HTTP_PORT: 'many'"),
        ({"keep_vms": "maybe"}, "SHELLWEGO_KEEP_VMS: 'maybe'"),
        ({"data_dir": ""}, "SHELLWEGO_DATA_DIR: ''"),
        ({"image_budget": "much"}, "SHELLWEGO_IMAGE_BUDGET: 'much'"),
        ({"cpu_overcommit": 0}, "--cpu-overcommit: 0"),
        ({"disk_overcommit": 65}, "--disk-overcommit: 65"),
        ({"reserve_memory": "some"}, "SHELLWEGO_RESERVE_MEMORY: 'some'"),
        ({"colour": "red"}, "unknown settings: colour"),
    ],
)
def test_settings_that_make_no_sense_are_named(machine: Machine, flags: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        up_settings(flags)
    assert machine.swg("up", "--http-port", "0").code == 2


def test_how_much_of_a_host_vms_get_is_its_operators_to_say() -> None:
    offer = up_settings({"cpu_overcommit": "4", "reserve_memory": "2gb"}).offer
    assert offer == Offer(cpu_overcommit=4, disk_overcommit=8, reserved_memory_bytes=2 << 30)
    assert up_settings({}).offer == Offer()


def test_a_budget_is_written_as_a_size() -> None:
    assert up_settings({"image_budget": "20gb"}).image_budget == 20 << 30
    assert up_settings({}).image_budget == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[registries]\nallow = ["10.0.0.5:5000"]', "unknown: registries"),
        ("http_port = 80", "unknown: http_port"),
        ("up = 1", "[up] is not a table"),
        ("[up", "config.toml: "),
    ],
)
def test_a_configuration_file_that_makes_no_sense_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidError, match=re.escape(words)):
        config_file_values(path)


@pytest.mark.parametrize("words", ["up", "doctor"])
def test_an_unset_variable_as_data_directory_is_not_the_working_directory(machine: Machine, words: str) -> None:
    for ended in (machine.swg(words, "--data-dir", ""), machine.swg(words, SHELLWEGO_DATA_DIR="")):
        assert (ended.code, ended.out) == (2, "")
        assert "--data-dir, or SHELLWEGO_DATA_DIR: '' is no path" in ended.err


@pytest.mark.parametrize(
    ("subnet", "is_here", "answers", "states_"),
    [
        ("10.64.16.0/20", True, True, [("names", "ok")]),
        ("10.64.16.0/20", True, False, [("names", "warn")]),
        ("10.64.16.0/20", False, False, []),
        ("nonsense", True, True, []),
        (None, True, True, []),
    ],
)
def test_where_a_platform_runs_its_resolver_must_answer(
    tmp_path: Path, subnet: str | None, is_here: bool, answers: bool, states_: list[tuple[str, str]]
) -> None:
    if subnet is not None:
        (tmp_path / "subnet").write_text(f"{subnet}\n")
    asked: list[str] = []
    found = check_names(tmp_path, is_here=lambda _: is_here, answers=lambda at: bool(asked.append(at)) or answers)
    assert states(found) == states_
    assert set(asked) <= {"10.64.16.1"}
