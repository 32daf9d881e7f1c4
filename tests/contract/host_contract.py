"""What every `Host` must do, whether it has root behind it or not."""

from __future__ import annotations

from tests.contract.host_networks_contract import HostNetworksContract
from tests.contract.host_vmms_contract import HostVmmsContract


class HostContract(HostNetworksContract, HostVmmsContract):
    """Subclasses give the fixture `rig`."""
