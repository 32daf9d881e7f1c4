"""What `shellwego.toml` may say: one structure for each table, of which the JSON schema is made too.

Names follow fly.toml where it has one, so that people's hands know them. What a later version will do is known here
already, so that it can be refused by its reason (`manifest.unsupported`) and not as a misspelling.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Duration = Annotated[
    int | float | str, Meta(description="Seconds, or a text such as 30s, 5m, 1h30m.", examples=[30, "5m", "1h30m"])
]
Size = Annotated[str, Meta(description="Bytes as text, such as 512m or 1gb.", examples=["512m"])]
Command = Annotated[
    str | list[str],
    Meta(
        description="A list of arguments, or a text that is split into them. No shell is run unless the list names one.",
        examples=["gunicorn app:app", ["sh", "-c", "exec gunicorn -b :$PORT app:app"]],
    ),
]
Share = Annotated[int | str, Meta(description="A number of instances, or a share such as 25%.", examples=[1, "25%"])]
Port = Annotated[int, Meta(ge=1, le=65535)]
ProcessName = Annotated[str, Meta(pattern="^[a-z][a-z0-9-]*$", max_length=31)]
AppName = Annotated[str, Meta(pattern="^[a-z](-?[a-z0-9])*$", max_length=40)]


class SecretReference(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A variable whose value is a secret of the project."""

    secret: Annotated[str, Meta(min_length=1, max_length=255)]
    version: Annotated[int, Meta(ge=1)] | Literal["latest"] = "latest"
    """`latest` is that of the moment when the release is made."""


EnvValue = str | int | float | bool | SecretReference


class Build(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where the image comes from."""

    image: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    """A loaded name, a registry reference, or a file.wasm beside this file."""
    dockerfile: str | None = None
    builder: str | None = None


class Deploy(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How a release is rolled out."""

    strategy: Literal["rolling", "bluegreen", "canary", "immediate"] | None = None
    release_command: Command | None = None
    """Run once in a VM of its own before anything is replaced; the deployment fails where it fails."""
    wait_timeout: Duration | None = None
    max_unavailable: Share | None = None
    surge: Share | None = None
    canary_steps: list[Annotated[int, Meta(ge=1, le=100)]] | None = None
    """With `canary`: rising percentages of the requests that the new release gets."""
    canary_pause: Duration | None = None
    """With `canary`: how long each step must hold."""
    rollback_on_failure: bool | None = None
    drain_timeout: Duration | None = None


class Concurrency(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How many requests an instance may have at once."""

    soft: int | None = None
    hard: int | None = None


class HttpService(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The process that requests go to, and its port."""

    internal_port: Port
    process: ProcessName | None = None
    """Left out: `web`, or the only process."""
    force_https: bool = False
    auto_stop: Literal["off", "stop", "suspend"] = "off"
    auto_start: bool | None = None
    min_running: int | None = None
    concurrency: Concurrency | None = None


class Check(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What makes an instance healthy."""

    type: Literal["http", "tcp", "exec"] = "http"
    process: ProcessName | None = None
    """Left out: the process of the service."""
    path: str = "/"
    port: Port | None = None
    command: Command | None = None
    interval: Duration = 5.0
    timeout: Duration = 3.0
    grace: Duration = 0.0
    retries: Annotated[int, Meta(ge=1, le=100)] = 3


class Mount(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A volume in a process' file system. One process has a volume, in one instance."""

    source: Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]*$", max_length=63)]
    """The volume's name: swg volumes create."""
    destination: Annotated[str, Meta(pattern="^/", max_length=255)]
    """Where the process finds it, such as /data."""
    process: ProcessName | None = None
    """Left out: the process of the service."""
    read_only: bool = False


class Vm(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The size of a process' instances; without `process`, of each that has no entry of its own."""

    process: ProcessName | None = None
    memory: Size | None = None
    cpu: (
        Annotated[str | int | float, Meta(description="Cores, or thousandths as 500m.", examples=["500m", 2])] | None
    ) = None
    disk: Size | None = None
    count: Annotated[int, Meta(ge=0, le=1000)] | None = None
    """How many, when the process is deployed for the first time; later: swg scale."""
    backend: str | None = None


class Placement(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where instances may go, and what keeps those of one process apart."""

    region: Annotated[str, Meta(max_length=63)] = ""
    """The region that a node must be in; left out: any."""
    zone: Annotated[str, Meta(max_length=63)] = ""
    require: dict[str, Annotated[str, Meta(max_length=63)]] = field(default_factory=dict)
    """Labels that a node must have, all of them."""
    tolerate: dict[str, Annotated[str, Meta(max_length=63)]] = field(default_factory=dict)
    """Taints that a node may have: `gpu = "yes"` for the label `taint/gpu=yes`."""
    spread: Literal["zone", "node", "none"] = "zone"
    """`zone`: over zones, then over nodes. `none`: on as few nodes as have room."""
    priority: Annotated[int, Meta(ge=0, le=100)] = 50
    """Where no node fits, instances of apps whose priority is lower by 10 at least may be evicted; no higher than the
    organization's limit."""


class Restart(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """When an ended process is started again; without `process`, for each that has no entry of its own."""

    process: ProcessName | None = None
    policy: Literal["always", "on-failure", "never"] = "always"
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    backoff: Duration | None = None
    """The pause before each start; left out: one that rises."""


class Manifest(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An app and how it runs."""

    app: AppName
    """Its name in the project."""
    build: Build = Build()
    env: dict[str, EnvValue] = field(default_factory=dict)
    """Variables. Those set by `swg env` and not named here stay."""
    deploy: Deploy = Deploy()
    processes: dict[ProcessName, Command] = field(default_factory=dict)
    """Each with its command. Left out: one process `web` with the image's own command."""
    http_service: HttpService | None = None
    checks: list[Check] = field(default_factory=list)
    mounts: list[Mount] = field(default_factory=list)
    vm: list[Vm] = field(default_factory=list)
    placement: Placement = Placement()
    restart: list[Restart] = field(default_factory=list)
