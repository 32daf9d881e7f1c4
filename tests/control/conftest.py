"""The world of rollouts, as most tests of the control plane have it; one that wants a database makes its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.control.rollout_world import World, living_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with living_world() as world:
        yield world


@pytest.fixture
async def quiet_world() -> AsyncIterator[World]:
    """Its loops do not run: a test runs those that it is about."""
    async with living_world(loops=False) as world:
        yield world
