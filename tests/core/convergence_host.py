"""A host as the agent's decisions see it: they look, it does as it is told, and says what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shellwego.core.apps import RestartPolicy
from shellwego.core.assignments import Assignment, Workload
from shellwego.core.attempts import End, Memory, hindered
from shellwego.core.convergence import Action, DeleteVm, RestrictVm, RunVm, ScreenVm, StopVm, converge
from shellwego.core.destinations import Destination
from shellwego.core.health import Health, Verdict
from shellwego.core.instances import Observed
from shellwego.core.openings import Ingress
from shellwego.core.vms import VmPhase, VmView

WORKLOAD = Workload(
    organization_id="org",
    project_id="prj",
    network_id="net",
    app_id="app",
    app_name="shop",
    process="web",
    release=1,
    image_digest="sha256:a",
    command=None,
    entrypoint=None,
    env={},
    memory_bytes=1,
    cpu_milli=1,
    vcpus=1,
    disk_bytes=1,
    port=8080,
    checks=(),
    restart=RestartPolicy(),
    stop_signal=None,
    stop_grace_s=7.0,
)


@dataclass(slots=True)
class Host:
    """A host on which orders are carried out at once, and time is ours."""

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    now: float = 100.0
    present: bool = True
    asleep: bool = False
    memory_of: str = ""
    egress: tuple[Destination, ...] | None = None
    ingress: Ingress = None
    assigned: bool = True
    vms: dict[str, VmView] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    health: dict[str, Health] = field(default_factory=dict)
    started: list[tuple[float, int]] = field(default_factory=list)
    wake_at: float | None = None
    observed: dict[str, Observed] = field(default_factory=dict)

    def look(self) -> tuple[Action, ...]:
        workload = replace(WORKLOAD, restart=self.restart, egress=self.egress, ingress=self.ingress)
        item = Assignment(
            instance_id="ins",
            workload=workload,
            present=self.present,
            asleep=self.asleep,
            memory_of=self.memory_of,
        )
        step = converge((item,) if self.assigned else (), self.vms.values(), self.memories, self.health, self.now)
        self.memories, self.observed, self.wake_at = dict(step.memories), dict(step.observed), step.wake_at
        return step.actions

    @property
    def seen(self) -> Observed:
        return self.observed["ins"]

    def act(self) -> tuple[Action, ...]:
        """Look, and carry the orders out."""
        actions = self.look()
        for action in actions:
            match action:
                case RunVm():
                    self.started.append((self.now, action.attempt))
                    self.vms[action.vm_id] = VmView(
                        vm_id=action.vm_id,
                        instance_id="ins",
                        attempt=action.attempt,
                        phase=VmPhase.RUNNING,
                        address="10.64.0.2",
                        egress=action.workload.egress,
                        identity=action.workload.app_id,
                        ingress=action.workload.ingress,
                    )
                case RestrictVm(vm_id=id_):
                    self.vms[id_] = replace(self.vms[id_], egress=action.egress)
                case ScreenVm(vm_id=id_):
                    self.vms[id_] = replace(self.vms[id_], identity=action.identity, ingress=action.ingress)
                case StopVm(vm_id=id_):
                    self.vms[id_] = replace(self.vms[id_], phase=VmPhase.STOPPING, asked=True)
                case DeleteVm(vm_id=id_):
                    del self.vms[id_]
        return actions

    @property
    def vm(self) -> VmView:
        return max(self.vms.values(), key=lambda vm: vm.attempt)

    def end(self, exit_code: int | None = 1, **changes: object) -> None:
        ended = replace(
            self.vm,
            phase=VmPhase.ENDED,
            exit_code=exit_code,
            reason=f"the workload ended with exit code {exit_code}",
            log_tail=("boom",),
        )
        self.vms[ended.vm_id] = replace(ended, **changes)  # type: ignore[arg-type]

    def become(self, phase: VmPhase) -> None:
        self.vms[self.vm.vm_id] = replace(self.vm, phase=phase)

    def hinder(self, end: End) -> None:
        """As if the engine had refused the last order to sleep or to wake."""
        self.memories["ins"] = hindered(self.memories["ins"], end, self.now)

    def check(self, verdict: Verdict, reason: str = "") -> None:
        self.health[self.vm.vm_id] = Health(vm_id=self.vm.vm_id, verdict=verdict, reason=reason, since=self.now)

    def run_until_quiet(self, exit_code: int | None = 1) -> None:
        """Each attempt ends at once, until nothing more is tried."""
        while self.memories.get("ins", Memory()).outcome is None:
            self.act()
            if self.vms and self.vm.phase is VmPhase.RUNNING:
                self.end(exit_code)
            elif self.wake_at is not None:
                self.now = self.wake_at
