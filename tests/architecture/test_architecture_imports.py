"""Each import contract is alive: a planted violation turns it red."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]

VIOLATIONS: dict[str, tuple[str, str]] = {
    "The platform's layers: imports go down": ("shellwego/core/ids.py", "import shellwego.control.unit"),
    "Only boot imports drivers": ("shellwego/control/unit.py", "import shellwego.drivers.bus.memory"),
    "The command line speaks to the client alone": ("shellwego/cli/__init__.py", "import shellwego.core.ids"),
    "The client stays light": ("shellwego/client/context.py", "import pydantic"),
    "Use cases import ports, never HTTP, SQL or drivers": ("shellwego/control/unit.py", "import sqlalchemy"),
    "Only drivers, boot's split and the gRPC API import the engine": (
        "shellwego/agent/__init__.py",
        "import plasmavmc.types",
    ),
    "Drivers of different kinds do not know each other": (
        "shellwego/drivers/bus/memory.py",
        "import shellwego.drivers.clock.system",
    ),
    "Core has no clock, no randomness, no input or output": ("shellwego/core/ids.py", "import time"),
    "The engine's layers: imports go down": ("plasmavmc/host/operations.py", "import plasmavmc.manager"),
    "The engine's services know it by their protocols only": (
        "plasmavmc/rpc/api.py",
        "import plasmavmc.hypervisor.registry",
    ),
    "gRPC stays in its rooms": ("plasmavmc/manager.py", "import grpc"),
    "The engine knows nothing of the platform": ("plasmavmc/types.py", "import shellwego.core.ids"),
    "Only the host's rooms start processes": ("shellwego/control/unit.py", "import subprocess"),
    "Only the root helper touches netlink": ("plasmavmc/network/backend.py", "import pyroute2"),
}


def lint(sources: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with our configuration on these sources."""
    command = [
        str(Path(sys.executable).parent / "lint-imports"),
        "--no-cache",
        "--config",
        str(ROOT / "pyproject.toml"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=sources, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sources")
    for package in ("plasmavmc", "shellwego"):
        shutil.copytree(ROOT / "packages" / package / "src" / package, target / package)
    return target


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("plasmavmc/rpc/api.py", "import plasmavmc.manager"),
        ("plasmavmc/manager.py", "import plasmavmc.rpc.api"),
        ("plasmavmc/rpc/api.py", "import plasmavmc.server.engine"),
        ("plasmavmc/server/engine.py", "import plasmavmc.cli"),
    ],
)
def test_the_engines_server_stands_above_its_services_and_beside_them_the_manager(
    sources: Path, name: str, statement: str
) -> None:
    path = sources / name
    before = path.read_text()
    path.write_text(f"{before}\n{statement}\n")
    try:
        result = lint(sources)
    finally:
        path.write_text(before)
    assert "The engine's layers: imports go down BROKEN" in result.stdout


def test_every_contract_has_a_planted_violation() -> None:
    assert set(VIOLATIONS) == set(CONTRACTS)


def test_the_tree_as_it_is_keeps_every_contract(sources: Path) -> None:
    result = lint(sources)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_planted_violation_breaks_its_contract(sources: Path, contract: str) -> None:
    name, statement = VIOLATIONS[contract]
    path = sources / name
    before = path.read_text()
    path.write_text(f"{before}\n{statement}\n")
    try:
        result = lint(sources)
    finally:
        path.write_text(before)
    assert result.returncode != 0
    assert f"{contract} BROKEN" in result.stdout
