"""Which backends this host has, and which one serves a VM.

Theory. A backend is `probing` until a probe has shown that it boots a guest, then `ready` or `unavailable` with the
reason; presence of a file proves nothing. Only new VMs care: one that runs is adopted, watched and ended by its backend
(`get`) whatever a probe says. `select` asks the candidates in the order of their registration; where none can serve, the
error carries every candidate's reason, from the code that decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plasmavmc.backends import BackendStatus, GuestKind, Readiness
from plasmavmc.errors import HostError, InvalidSpecError, NotFoundError, UnavailableError
from plasmavmc.hypervisor.backend import HypervisorBackend
from plasmavmc.hypervisor.capabilities import Refusal, refusals
from plasmavmc.types import VmSpec


@dataclass(slots=True)
class _Entry:
    status: BackendStatus
    backend: HypervisorBackend | None = None
    by_default: bool = True


class HypervisorRegistry:
    """The backends of one host. Not thread-safe: belongs to the engine's event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def probing(self, name: str, backend: HypervisorBackend | None = None, *, by_default: bool = True) -> None:
        """Announce a backend whose probe runs; new VMs for it wait. Where it is given, those that run can be adopted.
        Without `by_default` only VMs that name it wait."""
        self._enter(name, Readiness.PROBING, "its probe is booting a guest", backend, by_default=by_default)

    def register(self, backend: HypervisorBackend, *, reason: str = "", by_default: bool = True) -> None:
        """Offer a backend. Without `by_default` it serves only VMs that name it."""
        self._enter(backend.capabilities.name, Readiness.READY, reason, backend, by_default=by_default)

    def refuse(self, name: str, reason: str) -> None:
        """Note that no new VM can be made with a backend on this host."""
        entry = self._entries.get(name)
        self._enter(name, Readiness.UNAVAILABLE, reason, entry.backend if entry else None)

    def _enter(
        self,
        name: str,
        readiness: Readiness,
        reason: str,
        backend: HypervisorBackend | None,
        *,
        by_default: bool = True,
    ) -> None:
        capabilities = backend.capabilities if backend is not None and readiness is Readiness.READY else None
        self._entries[name] = _Entry(BackendStatus(name, readiness, reason, capabilities), backend, by_default)

    def statuses(self) -> tuple[BackendStatus, ...]:
        """All backends, in the order of their registration."""
        return tuple(entry.status for entry in self._entries.values())

    def backends(self) -> tuple[HypervisorBackend, ...]:
        """All backends that have or could have VMs."""
        return tuple(entry.backend for entry in self._entries.values() if entry.backend is not None)

    def get(self, name: str) -> HypervisorBackend:
        """The backend of that name, for VMs that exist, whether or not it may have new ones.

        Raises:
            NotFoundError: there is none.
            UnavailableError: it is being probed.
            HostError: it cannot be used on this host.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise NotFoundError("no-such-backend", f"there is no hypervisor backend {name!r}")
        if entry.backend is None:
            raise _unusable([entry.status])
        return entry.backend

    def select(self, spec: VmSpec, kind: GuestKind | None = None) -> HypervisorBackend:
        """The first backend that can serve `spec`. While nobody knows what the image holds (`kind`), a backend that is being
        probed might be the one, so that counts as none.

        Raises:
            InvalidSpecError: the spec names an unknown backend, or asks for more than any has.
            UnavailableError: a backend that might serve it is being probed.
            HostError: no backend can be used on this host.
        """
        candidates = self._candidates(spec.backend)
        ready = [entry for entry in candidates if entry.status.readiness is Readiness.READY]
        if kind is None and len(ready) < len(candidates):
            probing = [entry.status for entry in candidates if entry.status.readiness is Readiness.PROBING]
            if probing:
                raise _unusable(probing)
        reasons: list[Refusal] = []
        for entry in ready:
            assert entry.backend is not None  # noqa: S101 - a ready entry has one
            refused = refusals(spec, entry.backend.capabilities, kind)
            if not refused:
                return entry.backend
            reasons += refused
        if not ready or any(entry.status.readiness is Readiness.PROBING for entry in candidates):
            raise _unusable([entry.status for entry in candidates if entry not in ready])
        raise _refused(reasons)

    def _candidates(self, name: str | None) -> Sequence[_Entry]:
        if name is None:
            return [entry for entry in self._entries.values() if entry.by_default]
        if name not in self._entries:
            known = ", ".join(self._entries) or "none"
            raise InvalidSpecError("backend", f"there is no backend {name!r}", resolution=f"choose one of: {known}")
        return [self._entries[name]]


def _unusable(statuses: Sequence[BackendStatus]) -> UnavailableError | HostError:
    details = "; ".join(f"{status.name}: {status.reason}" for status in statuses)
    if any(status.readiness is Readiness.PROBING for status in statuses):
        return UnavailableError("backend-probing", "the hypervisor is still being probed", details=details)
    return HostError(
        "no-backend",
        "this host has no usable hypervisor",
        details=details,
        resolution="run `plasmavmc doctor` on the host",
    )


def _refused(reasons: Sequence[Refusal]) -> InvalidSpecError:
    brief = "; ".join((reasons[0].reason, *(str(reason) for reason in reasons[1:])))
    return InvalidSpecError(reasons[0].field, brief)
