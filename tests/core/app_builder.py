"""Short ways to write apps, releases, instances and deployments in tests of the core."""

from __future__ import annotations

from dataclasses import replace

from shellwego.core.apps import App, AppConfig, Process, Release, Service, content_hash
from shellwego.core.deployments import Deployment, DeploymentState, Stage
from shellwego.core.instances import Desired, Instance, Observed, Phase
from shellwego.core.routing import Edge

NOW = 1000.0


def release(number: int = 1, *, image: str = "", port: int = 8080, processes: tuple[Process, ...] = ()) -> Release:
    """v1, v2, …; another image for each, unless the image is given."""
    known = processes or (Process(),)
    services = (Service(process=known[0].name, port=port),) if port else ()
    config = AppConfig(image=image or f"hello:v{number}", processes=known, services=services, drain_timeout_s=30.0)
    digest = f"sha256:{config.image}"
    return Release(
        id=f"rel_{number}",
        app_id="app",
        number=number,
        config=config,
        image_digest=digest,
        content_hash=content_hash(config, digest),
        created_at=float(number),
        created_by="me",
    )


def app(**changes: object) -> App:
    made = App(
        id="app",
        project_id="prj",
        name="shop",
        hostname="shop.localhost",
        config=AppConfig(),
        counts={},
        created_at=0.0,
        updated_at=0.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def instance(of: Release, slot: int = 0, phase: Phase = Phase.HEALTHY, **changes: object) -> Instance:
    """An instance of `web` on node `node_a`; the first of a release has the id `v1.0`."""
    seen = Observed(phase=phase, address="10.64.0.2" if phase is Phase.HEALTHY else "")
    made = Instance(
        id=f"v{of.number}.{slot}",
        app_id="app",
        process="web",
        slot=slot,
        release_id=of.id,
        content_hash=of.content_hash,
        generation=0,
        memory_bytes=1,
        cpu_milli=1,
        disk_bytes=1,
        node_id="" if phase is Phase.PENDING else "node_a",
        phase=phase,
        observed=seen,
        routed_version=1 if phase is Phase.HEALTHY else None,
        created_at=float(of.number),
        phase_since=NOW,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def draining(of: Release, slot: int = 0, *, version: int | None = 5, since: float = NOW) -> Instance:
    return instance(of, slot, desired=Desired.DRAIN, unrouted_version=version, drain_since=since)


def deployment(of: Release, state: DeploymentState = DeploymentState.IN_PROGRESS, **changes: object) -> Deployment:
    made = Deployment(
        id=f"dep_{of.number}",
        app_id="app",
        release_id=of.id,
        state=state,
        stage=Stage.PLACING,
        strategy="rolling",
        rollback_on_failure=True,
        wait_timeout_s=60.0,
        created_at=NOW,
        created_by="me",
        started_at=NOW if state is DeploymentState.IN_PROGRESS else None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def edge(name: str = "e1", *, applied: int = 5, lease_until: float = NOW + 1000, **sessions: int) -> Edge:
    """`sessions` are open sessions by instance, with `_` for `.`: `v1_0=2`."""
    return Edge(
        id=f"edg_{name}",
        name=name,
        applied_version=applied,
        open_sessions={key.replace("_", "."): count for key, count in sessions.items()},
        lease_until=lease_until,
        created_at=0.0,
    )
