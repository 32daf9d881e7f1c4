"""Where the platform's servers may listen: nothing that carries a token leaves this host in clear."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shellwego.boot import preflight, up
from shellwego.boot.configfile import config_file_values
from shellwego.boot.hosting import edge_settings
from shellwego.boot.settings import UpSettings
from shellwego.boot.settingschecks import check
from shellwego.core.errors import InvalidError
from shellwego.edge.settings import LOOPBACK

CERTIFICATE = {"api_cert": Path("cert.pem"), "api_key": Path("key.pem")}


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (UpSettings(grpc_port=50082, grpc_listen="::"), "public-grpc-without-tls"),
        (UpSettings(grpc_port=50082, grpc_listen="10.0.0.1"), "public-grpc-without-tls"),
        (UpSettings(grpc_port=7080), "same-port"),
        (UpSettings(grpc_port=80, http_port=8080), "invalid-port"),
        (UpSettings(grpc_port=70000), "invalid-port"),
        (UpSettings(api_listen="::"), "public-api-without-tls"),
        (UpSettings(node_port=7080), "same-port"),
        (UpSettings(api_balancers=("the balancer",)), "invalid-network"),
        (UpSettings(shutdown_delay=-1), "invalid-shutdown-delay"),
        (UpSettings(shutdown_delay=61), "invalid-shutdown-delay"),
        (UpSettings(connections_per_vm=63), "invalid-connections"),
        (UpSettings(connections_per_vm=-1), "invalid-connections"),
        (UpSettings(edge_connections_per_source=-1), "invalid-connections"),
        (UpSettings(edge_connections_per_app=-1), "invalid-connections"),
        (UpSettings(edge_balancers=("the balancer",)), "invalid-network"),
        (UpSettings(underlay="carrier pigeon"), "invalid-underlay"),
        (UpSettings(network_publish="all"), "invalid-ports"),
        (UpSettings(network_publish="7000-8000"), "same-port"),
        (UpSettings(network_publish="20000-29999", network_publish_on=("here",)), "invalid-address"),
        (UpSettings(wireguard_port=1023), "invalid-port"),
        (UpSettings(wireguard_port=65535), "invalid-port"),
        (UpSettings(rotate_keys=0), "invalid-rotation"),
        (UpSettings(rotate_keys=8761), "invalid-rotation"),
        (UpSettings(node_port=443), "invalid-port"),
        (UpSettings(node_port=7081, node_urls=("http://one:7081",)), "invalid-url"),
        (UpSettings(node_port=7081, node_urls=("https://one",)), "invalid-url"),
        (UpSettings(node_port=7081, node_urls=("https://one:1/x",)), "invalid-url"),
    ],
)
def test_what_would_tell_tokens_or_cannot_listen_is_refused(settings: UpSettings, code: str) -> None:
    with pytest.raises(InvalidError) as refused:
        check(settings)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        (UpSettings(), ""),
        (UpSettings(grpc_port=50082), "127.0.0.1:50082"),
        (UpSettings(grpc_port=50082, grpc_listen="::1"), "[::1]:50082"),
        (UpSettings(grpc_port=50082, grpc_listen="10.0.0.1", **CERTIFICATE), "10.0.0.1:50082"),
    ],
)
def test_the_engines_services_are_served_where_that_is_asked_for(settings: UpSettings, address: str) -> None:
    check(settings)
    assert settings.grpc_address == address


@pytest.mark.parametrize(
    ("settings", "addresses"),
    [
        (UpSettings(), ()),
        (UpSettings(node_urls=("https://one:7081",)), ()),
        (UpSettings(node_port=7081), ("https://127.0.0.1:7081",)),
        (UpSettings(node_port=7081, node_listen="::1"), ("https://[::1]:7081",)),
        (UpSettings(node_port=7081, node_listen="::"), (f"https://{socket.gethostname()}:7081",)),
        (UpSettings(node_port=7081, node_urls=("https://a:1", "https://[::1]:2")), ("https://a:1", "https://[::1]:2")),
    ],
)
def test_hosts_that_join_are_told_where(settings: UpSettings, addresses: tuple[str, ...]) -> None:
    check(settings)
    assert settings.node_addresses == addresses


def test_nothing_is_published_unless_the_operator_says_so() -> None:
    assert not UpSettings().published_ports
    assert not preflight.publish_site(UpSettings()).allowed


def test_the_root_helper_is_told_what_may_be_published_and_where(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[network]\npublish = "20000-29999"\npublish_on = ["192.0.2.1", "2001:db8::1"]\n')
    values = config_file_values(file)
    assert values == {"network_publish": "20000-29999", "network_publish_on": ["192.0.2.1", "2001:db8::1"]}
    settings = UpSettings(network_publish="20000-29999", network_publish_on=("192.0.2.1", "2001:db8::1"))
    check(settings)
    site = preflight.publish_site(settings)
    assert (site.ports, list(map(str, site.addresses))) == (range(20_000, 30_000), ["192.0.2.1", "2001:db8::1"])


@pytest.mark.parametrize("text", ['[network]\nports = "1-2"\n', '[up]\nnetwork_publish = "1-2"\n', 'network = "1-2"\n'])
def test_a_table_of_the_network_that_is_not_understood_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(InvalidError):
        config_file_values(file)


def test_the_edge_is_told_whom_it_bounds_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[edge]\nconnections_per_source = 50\nconnections_per_app = 70\nbalancers = ["10.0.0.5", "fd00::/8"]\n'
    )
    values = config_file_values(file)
    monkeypatch.setattr(up, "config_file_values", lambda: values)
    installation = preflight.Installation("ins_1", "abc", tmp_path, tmp_path, 0, 0, -1)
    edge = edge_settings("front", installation, up.up_settings({}))
    assert (edge.source_share, edge.app_share) == (50, 70)
    assert edge.balancers == (*LOOPBACK, "10.0.0.5/32", "fd00::/8")
