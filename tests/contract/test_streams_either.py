"""Streams to nodes of this process and to those that dial: the contract holds whichever a node is."""

from __future__ import annotations

from collections.abc import Container

import pytest

from shellwego.drivers.streams.either import EitherStreams
from shellwego.drivers.streams.memory import MemoryStreams
from tests.contract.streams_contract import NODE, Joined, StreamsContract


class Linked(MemoryStreams):
    def __init__(self, nodes: Container[str]) -> None:
        super().__init__()
        self._nodes = nodes

    def linked(self, peer_id: str) -> bool:
        return peer_id in self._nodes


class TestOfANodeThatDialled(StreamsContract):
    @pytest.fixture
    def joined(self) -> Joined:
        linked = Linked({NODE})
        return Joined(EitherStreams(linked, MemoryStreams()), linked, linked.cut)


class TestOfANodeOfThisProcess(StreamsContract):
    @pytest.fixture
    def joined(self) -> Joined:
        here = MemoryStreams()
        return Joined(EitherStreams(Linked(()), here), here, here.cut)
