"""How many connections a VM may have, of those that its host can remember."""

from __future__ import annotations

from pathlib import Path

from plasmavmc.host.helper.connection_limits import FEWEST, MOST

_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_USUAL = 262_144
"""Of a host with more than 4 GiB (Documentation/networking/nf_conntrack-sysctl.rst)."""
_SHARE = 64
"""So many VMs at their limits fill the host's table; the kernel then gives up connections that are ending first."""
_ENOUGH = 512


def tracked_connections(path: Path = _TRACKED) -> int:
    """How many the host can remember, of all VMs together; the usual number where it does not tell."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return _USUAL


def connections_per_vm(given: int, tracked: int) -> int:
    """What each VM may have: what the operator said, else (0) a share of what the host can remember."""
    return min(max(given or max(_ENOUGH, tracked // _SHARE), FEWEST), MOST)
