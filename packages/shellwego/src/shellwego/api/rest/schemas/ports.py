"""Published ports of apps: what is asked, and what is told of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from shellwego.api.rest.schemas.common import Body, Pagination, View, when
from shellwego.control.publishing import PortWish
from shellwego.core.publishing import LEAST_PORT, MOST_PORT, PublishedPort, Transport

Port = Annotated[int, Field(ge=LEAST_PORT, le=MOST_PORT)]


class PortPublish(Body):
    port: Annotated[int, Field(ge=LEAST_PORT, le=MOST_PORT, examples=[25432])]
    """Of every node's addresses."""
    protocol: Annotated[str, Field(pattern="^(tcp|udp)$")] = "tcp"
    target_port: Port | None = None
    """Of the instances; left out: the same."""
    process: Annotated[str, Field(max_length=31)] = ""
    """Whose instances answer; left out: the only one that can be meant."""

    @property
    def wish(self) -> PortWish:
        return PortWish(
            port=self.port,
            transport=Transport(self.protocol),
            target_port=self.target_port,
            process=self.process,
        )


class PortView(View):
    """`port` is that of every node's addresses, `target_port` that of the instances of `process` behind it."""

    id: str
    app_id: str
    project_id: str
    process: str
    protocol: str
    port: int
    target_port: int
    created_at: datetime
    created_by: str


class PortList(View):
    data: list[PortView]
    pagination: Pagination


def port_view(published: PublishedPort) -> PortView:
    return PortView(
        id=published.id,
        app_id=published.app_id,
        project_id=published.project_id,
        process=published.process,
        protocol=published.transport.value,
        port=published.port,
        target_port=published.target_port,
        created_at=when(published.created_at),
        created_by=published.created_by,
    )
