"""What may be opened to a VM by others of its project, as nodes are told of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shellwego.core.destinations import LAST_PORT, IpProtocol

ANYBODY = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Who may open what."""

    identity: str = ANYBODY
    """The id of the app whose VMs may; or `ANYBODY`: all VMs of the project."""
    protocol: IpProtocol = IpProtocol.ANY
    first_port: int = 0
    last_port: int = LAST_PORT


Ingress = tuple[Opening, ...] | None
"""All that may be opened to a VM; None: anything."""
