"""`swg bus init`, and how its authority comes to the platform."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from shellwego.boot import up
from shellwego.boot.bus import open_bus, read_authority
from shellwego.boot.buschecks import check_bus
from shellwego.boot.businit import bus, make_bus
from shellwego.boot.configfile import config_file_values
from shellwego.boot.findings import State
from shellwego.boot.settings import UpSettings
from shellwego.boot.up import up_settings
from shellwego.core.errors import ConflictError, InvalidError
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.busaccess.authority import parse_authority
from shellwego.drivers.clock.system import SystemClock
from shellwego.ports.bus import Hint
from tests.contract.nats_server import made_nats, running_nats

NOW = 1_700_000_000.0


def seeds(directory: Path) -> list[str]:
    authority = parse_authority(Sensitive((directory / "authority.json").read_bytes()))
    return [key.seed_text.reveal_text() for key in (authority.operator, authority.account, authority.system)]


def test_it_writes_what_a_server_needs_readable_by_its_owner_alone_and_prints_how_to_start_it(tmp_path: Path) -> None:
    directory = tmp_path / "bus"
    done = CliRunner().invoke(bus, ["init", str(directory), "--listen", "0.0.0.0:4222", "--host", "Bus.example"])
    assert done.exit_code == 0, done.output
    assert f"nats-server -c {directory}/server/nats.conf" in done.output
    assert f'authority_file = "{directory}/authority.json"' in done.output
    files = {path for path in directory.rglob("*") if path.is_file()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((directory / "server").stat().st_mode) == 0o700
    assert parse_authority(Sensitive((directory / "authority.json").read_bytes())).urls == ("tls://bus.example:4222",)


def test_the_keys_lie_in_the_authority_alone_and_show_nowhere(tmp_path: Path) -> None:
    directory = tmp_path / "bus"
    output = CliRunner().invoke(bus, ["init", str(directory)]).output
    others = [path.read_text() for path in (directory / "server").iterdir()]
    assert not [seed for seed in seeds(directory) for text in [*others, output] if seed in text]
    shown = repr(parse_authority(Sensitive((directory / "authority.json").read_bytes())))
    assert not [seed for seed in seeds(directory) if seed in shown]


@pytest.mark.parametrize(
    ("listen", "hosts", "code"),
    [
        ("127.0.0.1", (), "invalid-listen"),
        ("127.0.0.1:0", (), "invalid-listen"),
        ("127.0.0.1:99999", (), "invalid-listen"),
        ("bus.example:4222", (), "invalid-listen"),
        ('127.0.0.1"\nx:4222', (), "invalid-listen"),
        ("0.0.0.0:4222", (), "no-host"),
        ("[::]:4222", (), "no-host"),
        ("127.0.0.1:4222", ("bus example",), "invalid-host"),
        ("127.0.0.1:4222", ("",), "invalid-host"),
        ("127.0.0.1:4222", ('x"; include "/etc/shadow',), "invalid-host"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(
    tmp_path: Path, listen: str, hosts: tuple[str, ...], code: str
) -> None:
    with pytest.raises(InvalidError) as refused:
        make_bus(tmp_path / "bus", listen=listen, hosts=hosts, now=NOW)
    assert refused.value.code == code
    assert not (tmp_path / "bus").exists()


def test_an_address_of_version_6_stands_in_brackets(tmp_path: Path) -> None:
    make_bus(tmp_path / "bus", listen="[::1]:4222", hosts=(), now=NOW)
    assert parse_authority(Sensitive((tmp_path / "bus/authority.json").read_bytes())).urls == ("tls://[::1]:4222",)


def test_a_bus_that_is_set_up_is_not_set_up_again(tmp_path: Path) -> None:
    make_bus(tmp_path / "bus", listen="127.0.0.1:4222", hosts=(), now=NOW)
    before = seeds(tmp_path / "bus")
    with pytest.raises(ConflictError) as refused:
        make_bus(tmp_path / "bus", listen="127.0.0.1:4222", hosts=(), now=NOW)
    assert refused.value.code == "directory-not-empty"
    assert seeds(tmp_path / "bus") == before


async def test_without_an_authority_hints_stay_within_the_process() -> None:
    assert read_authority(UpSettings()) is None
    assert isinstance(await open_bus(None, SystemClock()), MemoryBus)


def test_the_configuration_file_names_it_in_a_table_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bus(tmp_path / "bus", listen="127.0.0.1:4222", hosts=(), now=NOW)
    config = tmp_path / "config.toml"
    monkeypatch.setattr(up, "config_file_values", lambda: config_file_values(config))
    config.write_text(f'[bus]\nauthority_file = "{tmp_path}/bus/authority.json"\n')
    found = read_authority(up_settings({}))
    assert found is not None
    assert parse_authority(found).urls == ("tls://127.0.0.1:4222",)
    assert not up_settings({}).bus_node_passes, "it is for an operator to say so"
    with config.open("a") as stream:
        stream.write("node_passes = true\n")
    assert up_settings({}).bus_node_passes
    for wrong in (
        "[bus]\nnode_passes = true\n",
        '[bus]\nauthority_file = "x"\nnode_passes = 7\n',
        "[up]\nbus_node_passes = true\n",
        '[bus]\nurl = "x"\n',
        '[up]\nbus_authority_file = "x"\n',
        "bus = 1\n",
    ):
        config.write_text(wrong)
        with pytest.raises(InvalidError):
            up_settings({})


@pytest.mark.parametrize(("mode", "code"), [(0o640, "exposed-bus-authority"), (None, "no-bus-authority")])
def test_an_authority_that_others_can_read_or_that_is_not_there_is_refused(
    tmp_path: Path, mode: int | None, code: str
) -> None:
    path = tmp_path / "authority.json"
    if mode is not None:
        path.touch()
        path.chmod(mode)
    with pytest.raises(InvalidError) as refused:
        read_authority(UpSettings(bus_authority_file=path))
    assert refused.value.code == code


@pytest.mark.real
async def test_with_an_authority_hints_go_over_nats() -> None:
    with running_nats() as server:
        settings = UpSettings(bus_authority_file=server.directory / "authority.json")
        one, other = [await open_bus(read_authority(settings), SystemClock()) for _ in range(2)]
        async with other.subscribe("routes") as hints, asyncio.timeout(30):
            await one.publish("routes")
            assert await anext(hints) == Hint("routes")
        await one.close()
        await other.close()


def test_the_doctor_says_that_hints_stay_in_the_process_or_that_the_authority_is_not_to_be_had(tmp_path: Path) -> None:
    assert check_bus(UpSettings()).state is State.OK
    assert check_bus(UpSettings(bus_authority_file=tmp_path / "none")).state is State.FAIL


@pytest.mark.real
def test_the_doctor_says_whether_the_bus_answers() -> None:
    with made_nats() as server:
        settings = UpSettings(bus_authority_file=server.directory / "authority.json")
        away = check_bus(settings)
        server.start()
        found = check_bus(settings)
    assert (away.state, found.state) == (State.WARN, State.OK)
    assert f"tls://127.0.0.1:{server.port}" in away.message
    assert "NATS 2" in found.message


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"operator":"x","account":"y","system":"z"}'])
async def test_what_is_no_authority_is_refused_and_not_repeated(content: bytes) -> None:
    with pytest.raises(InvalidError) as refused:
        await open_bus(Sensitive(content), SystemClock())
    assert refused.value.code == "invalid-bus-authority"
    assert refused.value.__cause__ is None
