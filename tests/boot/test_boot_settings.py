"""Where the platform's servers may listen: nothing that carries a token leaves this host in clear."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from shellwego.boot.settings import UpSettings, check
from shellwego.core.errors import InvalidError

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
        (UpSettings(shutdown_delay=-1), "invalid-shutdown-delay"),
        (UpSettings(shutdown_delay=61), "invalid-shutdown-delay"),
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
