"""The run directories: one of the host, which all installations share, and each installation's own in it."""

from __future__ import annotations

import os

from plasmavmc.errors import HostError
from plasmavmc.host.configuration import HelperConfiguration
from plasmavmc.host.names import is_key


def prepare_run_root(configuration: HelperConfiguration) -> None:
    """Make the run directories: the common one root's, the installation's own the user's.

    Raises:
        HostError: `unsafe-run-root`, others than root can write it; `same-code`, another installation has our code.
    """
    root = configuration.run_root
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    status = root.lstat()
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise HostError(
            "unsafe-run-root", f"{root} is not root's alone", resolution=f"chown root {root}; chmod 755 {root}"
        )
    others = {path.name for path in root.iterdir() if is_key(path.name)} - {configuration.key}
    if any(other[:4] == configuration.names.code for other in others):
        raise HostError(
            "same-code",
            f"another installation on this host has names beginning with swg{configuration.key[:4]} too",
            resolution=f"if that one has ended, remove its directory in {root}; else give one of them another id",
        )
    own = configuration.names.run_dir(root)
    own.mkdir(mode=0o700, exist_ok=True)
    os.chown(own, configuration.uid, configuration.gid)
