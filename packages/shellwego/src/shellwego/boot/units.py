"""systemd units of the platform's processes, as text. Pure.

Theory. VMs and HAProxy outlive the process that started them, and its next life adopts them. So only the process itself is
signalled (`KillMode=process`), its cgroup is its own to divide (`Delegate=yes`), and it is told to keep what runs. Whatever
would give it a mount namespace of its own (ProtectSystem=, PrivateTmp=, …) is left out where VMs are: what an earlier life
mounted for a VM would not be seen by the next. A server runs none, so it gets these too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9@+=:,./_-]+")
_EVERYWHERE = (
    "NoNewPrivileges=yes",
    "RestrictSUIDSGID=yes",
    "RestrictRealtime=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "KeyringMode=private",
)
_WITHOUT_VMS = (
    "ProtectSystem=full",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "PrivateTmp=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
)


@dataclass(frozen=True, slots=True)
class UnitKind:
    """One process."""

    description: str
    keep: tuple[str, ...] = ()
    """Flags that leave running what runs when the unit is stopped."""
    writes_contexts: bool = False
    """Whether it writes the administrator's contexts, and needs to know root's home."""

    @property
    def has_vms(self) -> bool:
        """Whether something outlives it."""
        return bool(self.keep)


KINDS = {
    "up": UnitKind("ShellWeGo: the whole platform of this host", ("--keep-vms",), writes_contexts=True),
    "server": UnitKind("ShellWeGo: control plane", writes_contexts=True),
    "agent": UnitKind("ShellWeGo: the microVMs of this node", ("--keep-vms",)),
    "edge": UnitKind("ShellWeGo: edge", ("--keep",)),
}


def unit_name(kind: str) -> str:
    """The file's name."""
    return "shellwego.service" if kind == "up" else f"shellwego-{kind}.service"


def unit(kind: str, program: Path, arguments: Sequence[str]) -> str:
    """The unit that runs `program KIND ARGUMENTS`."""
    which = KINDS[kind]
    keep = [flag for flag in which.keep if flag not in arguments]
    command = " ".join(_word(word) for word in (str(program), kind, *arguments, *keep))
    service = [
        "Type=exec",
        f"ExecStart={command}",
        "WorkingDirectory=/",
        *(["Environment=HOME=/root"] if which.writes_contexts else []),
        "Restart=always",
        "RestartSec=1",
        "TimeoutStopSec=90",
        "LimitNOFILE=65536",
        "LimitCORE=0",
        *(["KillMode=process", "Delegate=yes", "OOMScoreAdjust=-500"] if which.has_vms else ["KillMode=mixed"]),
        *_EVERYWHERE,
        *(() if which.has_vms else _WITHOUT_VMS),
    ]
    parts = {
        "Unit": [
            f"Description={which.description}",
            "After=network-online.target",
            "Wants=network-online.target",
            "StartLimitIntervalSec=0",
        ],
        "Service": service,
        "Install": ["WantedBy=multi-user.target"],
    }
    return "\n".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in parts.items())


def _word(text: str) -> str:
    """One word of a command line, as systemd reads it back (systemd.service(5), “Command lines”)."""
    text = text.replace("%", "%%").replace("$", "$$")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
