"""What a manifest may say and this version does not do. It is refused, since an app would run otherwise than was asked."""

from __future__ import annotations

from collections.abc import Iterator

from shellwego.client.manifest.document import HttpService, Manifest
from shellwego.client.manifest.faults import Fault

_NO_BUILDS = "images are not built here yet: build one elsewhere, load it (swg images load), and give image"
_NO_SLEEP = "apps do not stop and start by themselves yet; leave it out"


def unsupported(manifest: Manifest) -> Iterator[Fault]:
    """Each wish that cannot be served yet, with the reason."""
    for key in ("dockerfile", "builder"):
        if getattr(manifest.build, key) is not None:
            yield Fault(("build", key), _NO_BUILDS)
    if manifest.http_service is not None:
        yield from _of_service(manifest.http_service)


def _of_service(service: HttpService) -> Iterator[Fault]:
    if service.force_https:
        yield Fault(("http_service", "force_https"), "needs domains with certificates, which are not offered yet")
    if service.auto_stop != "off":
        yield Fault(("http_service", "auto_stop"), _NO_SLEEP)
    for key in ("auto_start", "min_running"):
        if getattr(service, key) is not None:
            yield Fault(("http_service", key), _NO_SLEEP)
    if service.concurrency is not None:
        yield Fault(("http_service", "concurrency"), "requests are not limited for each instance yet; leave it out")
