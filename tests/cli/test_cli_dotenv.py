"""Files of variables: what stands in them, and that nothing of it is told where it is wrong."""

from __future__ import annotations

import json

import pytest

from shellwego.cli.dotenv import variables
from shellwego.client.generated import EnvView
from tests.cli.cli_world import HandMadeApi, Machine, view

KEY = "-----BEGIN KEY-----\nMIIsecret==\n-----END KEY-----"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\nB = 2 \n\n# C=3\nexport D=4", {"A": "1", "B": "2", "D": "4"}),
        ("A=\nB=''\nC=\"\"", {"A": "", "B": "", "C": ""}),
        ("A=a=b==\nB=x # y\nC=it's", {"A": "a=b==", "B": "x # y", "C": "it's"}),
        ("A='x # y' # z\nB=\"q\"#z\n", {"A": "x # y", "B": "q"}),
        (f"A=\"{KEY}\"\nB='{KEY}\n'\n", {"A": KEY, "B": f"{KEY}\n"}),
        ("A='one\n#two\nB=3'\nC=4", {"A": "one\n#two\nB=3", "C": "4"}),
        (r"""A="a\nb\t\"\\\$x\q" """, {"A": 'a\nb\t"\\$x\\q'}),
        (r"""A='a\nb\' """, {"A": r"a\nb" + "\\"}),
        ("A=\"${X} $Y\"\nB='${X}'\nC=${X}", {"A": "${X} $Y", "B": "${X}", "C": "${X}"}),
        (r"A=\$x\n", {"A": r"\$x\n"}),
        (f"\ufeffA=1\r\nB='{KEY}'\r\n".replace("\n", "\r\n").replace("\r\r", "\r"), {"A": "1", "B": KEY}),
        ("  A=1\n\t export B='2'  \nA=3", {"A": "3", "B": "2"}),
        ("", {}),
        ("\n# only\n", {}),
    ],
)
def test_variables_are_read_as_people_keep_them(text: str, found: dict[str, str]) -> None:
    assert variables(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A=1\nsecret", "line 2 is not NAME=VALUE"),
        ("A=-----BEGIN\nse/cret+\n", "line 2 is not NAME=VALUE"),
        ("A=1\n\nB='secret\nsecret\n", "line 3 has a quote that is not closed"),
        ('A="secret\nsecret" secret', "line 2 goes on behind the closing quote"),
        ("A=-----BEGIN\nse/cret==\n", "line 2 is not NAME=VALUE"),
        ("=secret", "line 1 is not NAME=VALUE"),
    ],
)
def test_a_mistake_is_told_by_its_line_and_not_by_what_stands_there(
    machine: Machine, api: HandMadeApi, text: str, said: str
) -> None:
    ended = machine.swg("env", "import", "-a", "shop", stdin=text)
    assert (ended.code, ended.out, api.asked) == (2, "", [])
    assert said in ended.err
    assert "cret" not in ended.err


def test_a_value_of_several_lines_is_imported_as_it_is(machine: Machine, api: HandMadeApi) -> None:
    api.answer("PATCH", "/v1/apps/shop/env", view(EnvView))
    assert machine.swg("env", "import", "-a", "shop", "--stage", stdin=f"KEY='{KEY}'\n").code == 0
    assert json.loads(api.asked[-1].body)["env"] == {"KEY": KEY}


def test_the_rest_of_a_value_that_a_shell_has_cut_is_not_told(machine: Machine, api: HandMadeApi) -> None:
    ended = machine.swg("env", "set", "-a", "shop", "A=one", "secret")
    assert (ended.code, api.asked) == (2, [])
    assert "Variable 2 of 2 is not NAME=VALUE" in ended.err
    assert "secret" not in ended.err


def test_the_help_says_what_backslashes_quotes_and_dollars_mean(machine: Machine) -> None:
    said = " ".join(machine.swg("env", "import", "--help").out.split())
    assert r"In double quotes \n, \r and \t are a line break" in said
    assert r"\$" in said
    assert "In single quotes, and without any, all stands for itself" in said
    assert "${X}" in said
