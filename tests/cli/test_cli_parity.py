"""Each operation of the API has a command: some module of the command line calls it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shellwego.cli
import shellwego.client
from shellwego.api.rest.app import openapi_document

CALLERS = [Path(shellwego.cli.__file__).parent, Path(shellwego.client.__file__).parent / "uploads.py"]
WITHOUT = {
    "healthz": "asked by supervisors",
    "readyz": "asked by supervisors; swg doctor tells more",
    "metrics": "read by Prometheus",
    "exec_command": "swg exec opens a stream instead, so that input and output flow",
    "update_app": "swg deploy, scale, env and plan change the config, and say what comes of it",
}
"""Operations that no person asks for, and why."""


def called() -> set[str]:
    """The names of everything that is called, or handed on, as an attribute in the command line's modules."""
    files = [file for place in CALLERS for file in (place.rglob("*.py") if place.is_dir() else [place])]
    trees = (ast.parse(file.read_text()) for file in files)
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def operations() -> list[str]:
    paths = openapi_document()["paths"]
    return sorted(operation["operationId"] for path in paths.values() for operation in path.values())


@pytest.mark.parametrize("operation", operations())
def test_each_operation_has_a_command(operation: str) -> None:
    assert operation in WITHOUT or operation in called()


def test_no_exception_outlives_its_operation_or_hides_a_command() -> None:
    assert set(WITHOUT) <= set(operations())
    assert not set(WITHOUT) & called()
