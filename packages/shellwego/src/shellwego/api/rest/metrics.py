"""A few counters in Prometheus' text format, version 0.0.4.

Labels are a bounded set: operation ids and statuses; apps by node, which are no more than there are VMs; nodes and the
reasons by which frames are dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from starlette.types import Scope

from shellwego.control.traffic import PlatformTraffic

_COUNTS = ("transmit_bytes", "transmit_packets", "receive_bytes", "receive_packets")
"""Fields of `core.traffic.Passed`, and names of metrics."""
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Metrics:
    """Counts answers by operation and status, and adds up how long they took."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Note an answer; 0 stands for a client that went away before it."""
        operation = getattr(scope.get("route"), "operation_id", None) or "none"
        self._requests[operation, status] += 1
        self._seconds[operation] += seconds

    def render(self, gauges: dict[str, int], traffic: PlatformTraffic) -> str:
        """All of it as text; `gauges` are counts taken now, by metric name."""
        lines = ["# TYPE shellwego_http_requests_total counter"]
        for (operation, status), count in sorted(self._requests.items()):
            lines.append(f'shellwego_http_requests_total{{operation="{operation}",status="{status}"}} {count}')
        lines.append("# TYPE shellwego_http_request_seconds_total counter")
        for operation, seconds in sorted(self._seconds.items()):
            lines.append(f'shellwego_http_request_seconds_total{{operation="{operation}"}} {seconds:.6f}')
        for name, value in sorted(gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join([*lines, *_traffic(traffic)]) + "\n"


def _traffic(traffic: PlatformTraffic) -> Iterator[str]:
    labelled = [
        (_labels(node=each.node, organization=each.organization, project=each.project, app=each.app), each.passed)
        for each in traffic.apps
    ]
    for count in _COUNTS:
        name = f"shellwego_network_{count}_total"
        yield f"# TYPE {name} counter"
        yield from (f"{name}{labels} {getattr(passed, count)}" for labels, passed in labelled)
    name = "shellwego_network_dropped_packets_total"
    yield f"# TYPE {name} counter"
    yield from (f"{name}{_labels(node=each.node, reason=each.reason)} {each.count}" for each in traffic.dropped)


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items()) + "}"
