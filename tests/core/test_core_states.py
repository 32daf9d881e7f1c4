"""The state tables, walked over all pairs: what they promise, promised of every state."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from itertools import product
from typing import TypeVar

import pytest

from plasmavmc.states import ENDED, MOVES, ForbiddenMoveError, VmState, advance
from shellwego.core.deployments import DEPLOYMENT_MOVES, FINISHED, DeploymentState
from shellwego.core.instances import PHASE_MOVES, SERVING, TERMINAL, Phase
from shellwego.core.volumes import VOLUME_MOVES, VolumeState

S = TypeVar("S", bound=StrEnum)


def reachable(table: Mapping[S, frozenset[S]], start: S) -> set[S]:
    found, new = {start}, {start}
    while new:
        new = {to for state in new for to in table[state]} - found
        found |= new
    return found


@pytest.mark.parametrize(
    "table",
    [PHASE_MOVES, DEPLOYMENT_MOVES, MOVES, VOLUME_MOVES],
    ids=["instance", "deployment", "vm", "volume"],
)
def test_a_table_names_every_state_and_no_move_to_itself(table: Mapping[StrEnum, frozenset[StrEnum]]) -> None:
    kind = type(next(iter(table)))
    assert set(table) == set(kind)
    assert all(to in set(kind) and to is not state for state in table for to in table[state])


def test_every_state_can_be_reached_from_the_first() -> None:
    assert reachable(PHASE_MOVES, Phase.PENDING) == set(Phase)
    assert reachable(DEPLOYMENT_MOVES, DeploymentState.PENDING) == set(DeploymentState)
    assert reachable(MOVES, VmState.PENDING) == set(VmState)
    assert reachable(VOLUME_MOVES, VolumeState.AVAILABLE) == set(VolumeState)


def test_every_instance_can_end_and_what_ended_stays_so() -> None:
    for phase in Phase:
        assert (not PHASE_MOVES[phase]) == (phase in TERMINAL)
        assert reachable(PHASE_MOVES, phase) & TERMINAL
        if phase not in TERMINAL | {Phase.PENDING}:
            assert Phase.LOST in PHASE_MOVES[phase], "a node can be lost at any moment"
            assert Phase.FAILED in PHASE_MOVES[phase]


def test_what_stops_never_serves_again() -> None:
    assert not reachable(PHASE_MOVES, Phase.STOPPING) & SERVING


def test_an_instance_never_goes_back_to_before_its_node() -> None:
    for phase in set(Phase) - {Phase.PENDING}:
        assert Phase.PENDING not in reachable(PHASE_MOVES, phase)


def test_a_finished_deployment_is_history() -> None:
    for state in DeploymentState:
        assert (not DEPLOYMENT_MOVES[state]) == (state in FINISHED)


def test_only_what_began_succeeds_or_is_rolled_back() -> None:
    allowed = {(a, b) for a, b in product(DeploymentState, DeploymentState) if b in DEPLOYMENT_MOVES[a]}
    for end in (DeploymentState.SUCCEEDED, DeploymentState.ROLLED_BACK):
        assert {a for a, b in allowed if b is end} == {DeploymentState.IN_PROGRESS}


def test_advance_agrees_with_the_vm_table_on_every_pair() -> None:
    for current, to in product(VmState, VmState):
        if to in MOVES[current]:
            assert advance(current, to) is to
        else:
            with pytest.raises(ForbiddenMoveError, match=f"{current.value} -> {to.value}"):
                advance(current, to)


def test_a_vm_is_one_shot() -> None:
    for state in ENDED:
        assert reachable(MOVES, state) <= ENDED
    for state in set(VmState) - ENDED:
        assert VmState.FAILED in MOVES[state], "a VMM can be killed at any moment"
        assert VmState.PENDING not in MOVES[state]
