"""What several modules of real things share: a root helper of their own, the image of `suspend_app`, and a store where it is
built once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.host_parts import HostRig
from tests.contract.host_rig import RealHelper, real_helper, rig_of
from tests.contract.images_samples import Sample
from tests.real.suspend_world import app_image


@pytest.fixture(scope="session")
def suspend_sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return app_image(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def suspend_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture
async def helper(tmp_path: Path) -> AsyncIterator[RealHelper]:
    async with real_helper(tmp_path) as made:
        yield made


@pytest.fixture
def rig(helper: RealHelper) -> HostRig:
    return rig_of(helper)
