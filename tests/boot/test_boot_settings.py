"""Where the platform's servers may listen: nothing that carries a token leaves this host in clear."""

from __future__ import annotations

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
