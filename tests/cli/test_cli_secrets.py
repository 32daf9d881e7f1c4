"""`swg secrets` against the API on a real socket: where a value may come from, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shellwego.core.secrets import label
from tests.api.running_api import Running
from tests.cli.cli_world import Ended, Machine

VALUE = "correct-horse"


def latest(machine: Machine, name: str = "DB_URL") -> Any:
    return json.loads(machine.swg("secrets", "show", name, "--json").out)


def value_of(running: Running) -> list[str]:
    """The values of all versions, opened as a delivery would."""

    async def opened() -> list[str]:
        world = running.world
        rows = await world.control.read(lambda tx: tx.secret_versions.select())
        secrets = {row.id: row for row in await world.control.read(lambda tx: tx.secrets.select())}
        told = []
        for row in sorted(rows, key=lambda row: row.number):
            assert row.sealed is not None
            bound = label(secrets[row.secret_id], world.project.organization_id)
            key = await world.sealer.open(row.sealed.key_id, bound)
            told.append(key.unseal(row.sealed, row.number).reveal_text())
        return told

    found: list[str] = running.do(opened())
    return found


def test_a_value_on_the_command_line_is_refused_with_the_other_ways_and_not_repeated(
    machine: Machine, running: Running
) -> None:
    ended = machine.swg("secrets", "set", f"DB_URL={VALUE}")
    assert ended.code == 2
    assert "NAME=-" in ended.err
    assert VALUE not in ended.err + ended.out
    assert machine.swg("secrets", "show", "DB_URL").code == 4


@pytest.mark.parametrize("words", [("DB_URL",), ("DB_URL=-",)])
def test_a_value_comes_from_stdin_without_its_last_line_break(
    machine: Machine, running: Running, words: tuple[str, ...]
) -> None:
    ended = machine.swg("secrets", "set", *words, stdin=f"{VALUE}\n\n")
    assert ended == Ended(0, "", "DB_URL is set\n")
    assert value_of(running) == [f"{VALUE}\n"]


def test_a_value_comes_from_a_file(machine: Machine, running: Running, tmp_path: Path) -> None:
    (tmp_path / "value").write_text(VALUE)
    assert machine.swg("secrets", "set", f"A=@{tmp_path / 'value'}", "B=-", stdin="b").code == 0
    assert machine.swg("secrets", "ls", "--output", "name").out.split() == ["A", "B"]


@pytest.mark.parametrize(
    ("words", "stdin"),
    [(("A=-", "B=-"), "x"), (("A", "B"), "x"), (("A=",), "x"), (("A=@",), "x"), (("A=@/no/such",), ""), (("A",), "\n")],
)
def test_what_gives_no_value_is_wrong_use(
    machine: Machine, running: Running, words: tuple[str, ...], stdin: str
) -> None:
    assert machine.swg("secrets", "set", *words, stdin=stdin).code == 2
    assert machine.swg("secrets", "ls", "--json").out.strip() == "[]"


def test_setting_again_makes_a_new_version_and_rotate_needs_one_that_is_there(
    machine: Machine, running: Running
) -> None:
    assert machine.swg("secrets", "rotate", "DB_URL", stdin="x").code == 4
    machine.swg("secrets", "set", "DB_URL", "--description", "of the shop", stdin="one")
    machine.swg("secrets", "set", "DB_URL", stdin="two")
    machine.swg("secrets", "rotate", "DB_URL", "--expires", "1d", stdin="three")
    shown = latest(machine)
    assert (shown["latest"], shown["description"]) == (3, "of the shop")
    assert [bool(version["expires_at"]) for version in shown["versions"]] == [True, False, False]
    assert value_of(running) == ["one", "two", "three"]


def test_a_bad_age_is_told_by_its_option(machine: Machine, running: Running) -> None:
    assert "--expires" in machine.swg("secrets", "set", "A", "--expires", "soon", stdin="x").err


def test_with_an_app_it_becomes_its_variable_and_is_rolled_out_unless_it_is_staged(
    machine: Machine, running: Running
) -> None:
    running.do(running.world.deployed())
    running.do(running.world.running())
    staged = machine.swg("secrets", "set", "-a", "shop", "DB_URL", "--stage", stdin="one")
    assert (staged.code, "next deploy" in staged.err) == (0, True)
    assert "(secret DB_URL, the latest)" in machine.swg("env", "ls", "-a", "shop").out
    assert machine.swg("releases", "-a", "shop", "--output", "name").out.split() == ["v1"]
    assert machine.swg("secrets", "set", "-a", "shop", "DB_URL", "--detach", stdin="two").code == 0
    assert machine.swg("releases", "-a", "shop", "--output", "name").out.split() == ["v2", "v1"]


def test_a_rotation_rolls_out_the_apps_that_take_the_newest(machine: Machine, running: Running) -> None:
    running.do(running.world.deployed())
    machine.swg("secrets", "set", "-a", "shop", "DB_URL", "--detach", stdin="one")
    running.do(running.world.running())
    ended = machine.swg("secrets", "rotate", "DB_URL", "--detach", stdin="two")
    assert (ended.code, "shop: rolling out v3" in ended.err) == (0, True)


def test_retiring_and_removing_ask_first(machine: Machine, running: Running) -> None:
    machine.swg("secrets", "set", "DB_URL", stdin="one")
    for words in (("retire", "DB_URL", "1"), ("rm", "DB_URL")):
        assert machine.swg("secrets", *words).code == 2
        assert machine.swg("secrets", *words, "--yes").code == 0
    assert machine.swg("secrets", "ls", "--json").out.strip() == "[]"


def test_showing_tells_versions_and_no_value(machine: Machine, running: Running) -> None:
    machine.swg("secrets", "set", "DB_URL", stdin=VALUE)
    shown = machine.swg("secrets", "show", "DB_URL").out
    assert "usable" in shown
    assert "never" in shown
    assert VALUE not in shown + machine.swg("secrets", "ls").out + machine.swg("events").out
