"""Sources that come with the package and are built on the host: the guest's init, the configuration of its kernel."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.errors import HostError


def native_directory(name: str) -> Path:
    """The directory of such sources: beside the package in a checkout, within it when installed.

    Raises:
        HostError: `no-native-sources`, a broken installation.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "native" / name, package.parents[1] / "native" / name):
        if candidate.is_dir():
            return candidate
    raise HostError("no-native-sources", f"the sources in native/{name} are not in {package}", resolution="Reinstall.")
