"""Apps: how they are made, scaled and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, model_validator

from shellwego.api.rest.schemas.common import Body, Cpu, Name, Pagination, Size, View, when
from shellwego.api.rest.schemas.config import ConfigBody, ConfigView, Counts, Env, EnvChanges, ProcessBody, config_view
from shellwego.api.rest.schemas.secrets import SecretRefView
from shellwego.control.config import ProcessWish
from shellwego.core.apps import App
from shellwego.core.deployments import Deployment


class AppCreate(Body):
    """A new app. Nothing of it runs before its first deployment."""

    name: Annotated[str, Field(max_length=255, examples=["shop"])]
    """a-z, 0-9 and single hyphens, beginning with a letter, at most 40 characters."""
    config: ConfigBody = ConfigBody()
    env: Env = Field(default_factory=dict)
    counts: Counts = Field(default_factory=dict)


class AppPatch(Body):
    """Changes to the current config; the next deployment takes them along."""

    config: ConfigBody


class ScaleBody(Body):
    """How many of each process should run, and how large. A new size is a new release; a count is not."""

    counts: Counts = Field(default_factory=dict)
    sizes: Annotated[dict[Name, SizeBody], Field(max_length=16)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_something(self) -> ScaleBody:
        if not self.counts and not self.sizes:
            raise ValueError("give counts, sizes, or both")
        return self


class SizeBody(Body):
    memory: Size | None = None
    cpu: Cpu | None = None
    vcpus: Annotated[int, Field(ge=1, le=256)] | None = None
    disk: Size | None = None

    def wish(self) -> ProcessWish:
        return ProcessBody(memory=self.memory, cpu=self.cpu, vcpus=self.vcpus, disk=self.disk).wish()


class EnvBody(Body):
    """Variables to set; null unsets. Without `stage` a change is rolled out as a new release."""

    env: EnvChanges
    stage: bool = False


class EnvView(View):
    env: dict[str, str]
    secrets: dict[str, SecretRefView] = Field(default_factory=dict)
    """Variables that are filled with secrets."""
    deployment_id: str | None = None
    """The deployment that a change began; null where it is staged or the app was never deployed."""


class AppView(View):
    id: str
    project_id: str
    name: str
    state: str
    hostname: str
    url: str
    counts: dict[str, int]
    """How many of each process are wanted."""
    running: dict[str, int]
    """How many of each process serve now."""
    stopped: bool
    deleting: bool
    config: ConfigView
    release: int | None
    """Number of the release that the app runs or is being rolled out to."""
    config_differs: bool
    """Whether `config` is another than that release's: it has changes that are not rolled out, or that failed and were
    rolled back. The next deployment takes them along; a rollback takes them out."""
    deployment_id: str | None
    """The deployment that was asked for last."""
    created_at: datetime
    updated_at: datetime
    version: int


class AppList(View):
    data: list[AppView]
    pagination: Pagination


class Accepted(View):
    """Long work was begun; follow the deployment."""

    app: AppView
    deployment_id: str | None


def app_view(
    app: App,
    *,
    state: str,
    url: str,
    running: dict[str, int],
    release: int | None,
    config_differs: bool,
    deployment: Deployment | None,
) -> AppView:
    """An app with what was judged of it."""
    return AppView(
        id=app.id,
        project_id=app.project_id,
        name=app.name,
        state=state,
        hostname=app.hostname,
        url=url,
        counts={process.name: app.counts.get(process.name, 1) for process in app.config.processes},
        running=running,
        stopped=app.stopped,
        deleting=app.deleting,
        config=config_view(app.config),
        release=release,
        config_differs=config_differs,
        deployment_id=deployment.id if deployment else None,
        created_at=when(app.created_at),
        updated_at=when(app.updated_at),
        version=app.version,
    )
