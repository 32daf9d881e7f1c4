"""What a rollout plan starts from: everything about one app, seen at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shellwego.core.apps import App, Release
from shellwego.core.deployments import STRATEGIES, Deployment, Strategy
from shellwego.core.images import ImageState
from shellwego.core.instances import Instance
from shellwego.core.routing import Edge


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """Whether an image can be run from."""

    state: ImageState
    reference: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    app: App
    releases: Mapping[str, Release]
    """By id: those that the app, its unfinished deployments and its instances name."""
    deployments: tuple[Deployment, ...] = ()
    """Those that are not finished."""
    instances: tuple[Instance, ...] = ()
    """Of every owner; one-off runs are only touched when the app goes, or their node."""
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    """By release id, for the unfinished deployments."""
    edges: tuple[Edge, ...] = ()
    published: frozenset[str] = frozenset()
    """Processes with published ports, whose instances nodes lead connections to by themselves."""
    dead_nodes: frozenset[str] = frozenset()
    """Nodes that were judged down, or are not known any more."""
    strategies: Mapping[str, Strategy] = field(default_factory=lambda: STRATEGIES)
