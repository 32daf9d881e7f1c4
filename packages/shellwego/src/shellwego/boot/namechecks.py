"""`swg doctor`: whether guests of this host are answered when they ask for names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shellwego.boot.findings import Finding, ok, warn
from shellwego.drivers.engine.host import gateway_in, is_own_address, resolver_answers


def check_names(
    data_dir: Path,
    *,
    is_here: Callable[[str], bool] = is_own_address,
    answers: Callable[[str], bool] = resolver_answers,
) -> list[Finding]:
    """Nothing where no platform runs on this host."""
    gateway = gateway_in(data_dir)
    if not gateway or not is_here(gateway):
        return []
    if answers(gateway):
        return [ok("names", f"the resolver at {gateway} answers")]
    return [
        warn(
            "names",
            f"nobody answers at {gateway}, port 53: VMs of this host find no other by name",
            "See the log of this host's platform, and who else holds that port: ss -lunp 'sport = :53'",
        )
    ]
