"""What the instances of an app should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shellwego.core.apps import App, Process, Release
from shellwego.core.instances import Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the instances should be. Without a release, none should be."""

    release: Release | None
    generation: int
    failures_since: float = 0.0
    """Failures before this do not delay a start: a new deployment begins afresh."""

    def matches(self, instance: Instance) -> bool:
        """Equal content is equal, whichever release it was started for."""
        return (
            self.release is not None
            and instance.content_hash == self.release.content_hash
            and instance.generation == self.generation
        )

    def process(self, name: str) -> Process | None:
        processes = self.release.config.processes if self.release else ()
        return next((process for process in processes if process.name == name), None)


def stable_target(app: App, releases: Mapping[str, Release]) -> Target:
    """What the instances of an app should be while no deployment of it is under way."""
    return Target(release=releases.get(app.stable_release_id), generation=app.stable_generation)
