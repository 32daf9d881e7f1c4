"""A few counters in Prometheus' text format, version 0.0.4. Labels are operation ids and statuses: a bounded set."""

from __future__ import annotations

from collections import Counter, defaultdict

from starlette.types import Scope


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

    def render(self, gauges: dict[str, int]) -> str:
        """All of it as text; `gauges` are counts taken now, by metric name."""
        lines = ["# TYPE shellwego_http_requests_total counter"]
        for (operation, status), count in sorted(self._requests.items()):
            lines.append(f'shellwego_http_requests_total{{operation="{operation}",status="{status}"}} {count}')
        lines.append("# TYPE shellwego_http_request_seconds_total counter")
        for operation, seconds in sorted(self._seconds.items()):
            lines.append(f'shellwego_http_request_seconds_total{{operation="{operation}"}} {seconds:.6f}')
        for name, value in sorted(gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"
