"""The platform itself: health, readiness, version, capabilities, metrics."""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response

from shellwego.api.rest.answers import body_answer, respond
from shellwego.api.rest.guard import PUBLIC, Granted, operation
from shellwego.api.rest.routes.common import Here, resource_router
from shellwego.api.rest.schemas.system import CapabilitiesView, HealthView, ReadinessView, VersionView
from shellwego.control.idempotency import Answer
from shellwego.control.instances import LIVE_PHASES
from shellwego.control.targets import SystemTarget
from shellwego.control.traffic import PlatformTraffic
from shellwego.core.deployments import STRATEGIES
from shellwego.core.errors import UnavailableError
from shellwego.core.nodes import NodeHealth
from shellwego.ports.store import Transaction, eq, within

router = resource_router("system")
probes = resource_router("system", prefix="")


@operation(probes, "GET", "/healthz", permission=PUBLIC, answer=HealthView)
async def healthz() -> Response:
    """The process answers."""
    return respond(body_answer(HealthView(status="ok")))


@operation(probes, "GET", "/readyz", permission=PUBLIC, answer=ReadinessView, refusals=(503,))
async def readyz(*, here: Here) -> Response:
    """The platform takes work: the store answers. A backend may still be probing; deploys wait for it and say so."""
    if here.leaving.is_set() or here.stopping.is_set():
        raise UnavailableError("stopping", "the platform stops")
    nodes, backends = await here.control.read(_nodes)
    return respond(body_answer(ReadinessView(status="ready", nodes=nodes, backends=backends)))


def _nodes(tx: Transaction) -> tuple[int, dict[str, str]]:
    """Ready nodes, and for each backend the best status that any of them has."""
    ready = tx.nodes.select(eq("health", NodeHealth.READY))
    best: dict[str, str] = {}
    rank = ("ready", "probing")
    for backend in (backend for node in ready for backend in node.facts.backends):
        known = best.get(backend.name, backend.status)
        best[backend.name] = next((status for status in rank if status in (known, backend.status)), known)
    return len(ready), best


@operation(probes, "GET", "/metrics", permission="nodes:read", answer=None, media_type="text/plain")
async def metrics(*, here: Here, access: Granted) -> Response:
    """Counters and gauges in Prometheus' text format."""

    def look(tx: Transaction, _: None) -> tuple[dict[str, int], PlatformTraffic]:
        gauges = {
            "shellwego_apps": tx.apps.count(),
            "shellwego_instances_live": tx.instances.count(within("phase", LIVE_PHASES)),
            "shellwego_nodes": tx.nodes.count(),
        }
        return gauges, here.traffic.read(tx)

    gauges, traffic = await access.read(SystemTarget(), look)
    return PlainTextResponse(here.metrics.render(gauges, traffic), media_type="text/plain; version=0.0.4")


@operation(router, "GET", "/version", permission=PUBLIC, answer=VersionView)
async def version(*, here: Here) -> Response:
    """Which version of the platform, and of the API, this is."""
    return respond(body_answer(VersionView(version=here.version, api="v1")))


@operation(router, "GET", "/capabilities", permission="apps:read", answer=CapabilitiesView)
async def capabilities(*, here: Here, access: Granted) -> Response:
    """What this platform can do now: strategies, backends, the domain of its apps."""

    def look(tx: Transaction) -> Answer:
        _, backends = _nodes(tx)
        view = CapabilitiesView(
            strategies=sorted(STRATEGIES), backends=backends, domain=here.domain, http_port=here.url.http_port
        )
        return body_answer(view)

    return respond(await access.own(lambda unit: look(unit.tx)))
