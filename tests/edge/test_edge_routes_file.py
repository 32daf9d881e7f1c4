"""The last routes on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from shellwego.core.routing import Endpoint, RouteState, RouteTable
from shellwego.edge.routes import FILE, LastRoutes, RoutesFile
from tests.edge.rig import route

LAST = LastRoutes(
    table=RouteTable(
        version=7,
        routes=(
            route(Endpoint(instance_id="ins_a", address="tcp:10.0.0.1:80", weight=3)),
            route(app="off", state=RouteState.STOPPED),
        ),
    ),
    backends={"app_hello": 4},
)


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    file = RoutesFile(tmp_path)
    assert await file.load() is None
    await file.save(LAST)
    await file.save(LAST)
    assert await file.load() == LAST
    assert names(tmp_path) == [FILE]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"table": 3}', b"\xff\xfe", b'{"table": {"version": 1}, "format": 99}']
)
async def test_a_damaged_or_foreign_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert await RoutesFile(tmp_path).load() is None


async def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    file = RoutesFile(tmp_path)
    await file.save(LAST)
    (tmp_path / f".{FILE}.new").write_bytes(b'{"table": {"ver')
    assert await file.load() == LAST


async def test_a_directory_that_is_gone_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await RoutesFile(tmp_path / "none").save(LAST)
