"""The platform about itself."""

from __future__ import annotations

from shellwego.api.rest.schemas.common import View


class HealthView(View):
    status: str


class ReadinessView(View):
    """`backends` holds, for each, the best status that any ready node has: `ready`, `probing` or `failed`."""

    status: str
    nodes: int
    backends: dict[str, str]


class VersionView(View):
    version: str
    api: str


class CapabilitiesView(View):
    strategies: list[str]
    backends: dict[str, str]
    domain: str
    http_port: int
