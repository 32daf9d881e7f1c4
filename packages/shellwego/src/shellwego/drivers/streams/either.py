"""Streams to a node of this process or to one that dialled: whichever the node is."""

from __future__ import annotations

from typing import Protocol

from shellwego.ports.streams import DuplexStream, StreamRequest, Streams


class LinkedStreams(Streams, Protocol):
    """Streams that know whom they reach."""

    def linked(self, peer_id: str) -> bool:
        """Whether the node has a link now."""


class EitherStreams:
    """See `ports.streams.Streams`."""

    def __init__(self, linked: LinkedStreams, here: Streams) -> None:
        self._linked = linked
        self._here = here

    async def open(self, node_id: str, request: StreamRequest) -> DuplexStream:
        streams: Streams = self._linked if self._linked.linked(node_id) else self._here
        return await streams.open(node_id, request)
