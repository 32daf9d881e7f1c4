"""The cache that `scripts/setup` filled, from which VMs of tests boot."""

from __future__ import annotations

import os
from pathlib import Path

from plasmavmc.guest.cache import CACHE_VARIABLE, DEFAULT_CACHE


def cache_directory() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)
