"""What several modules of real VMs share: the image of `suspend_app`, and a store where it is built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.images_samples import Sample
from tests.real.suspend_world import app_image


@pytest.fixture(scope="session")
def suspend_sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return app_image(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def suspend_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")
