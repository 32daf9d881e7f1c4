"""The uplink's contract over real TLS on loopback."""

from __future__ import annotations

import pytest

from shellwego.drivers.uplink.tls import TlsEdgeUplink, TlsNodeUplink
from tests.contract.node_port import Rig
from tests.contract.uplink_contract import Join, Joined, Recorder, UplinkContract


class TestTlsUplink(UplinkContract):
    @pytest.fixture
    def join(self, rig: Rig) -> Join:
        def join_over_tls(control: Recorder) -> Joined:
            wire = rig.wire(rig.port(control))
            node = TlsNodeUplink(rig.channel(rig.identities.node(), wire.url))
            edge = TlsEdgeUplink(rig.channel(rig.identities.edge(), wire.url))
            return Joined(node, edge, wire)

        return join_over_tls
