"""The console script `shellwego`, alias `swg`: the command line's commands and those that start the platform.

Each command is imported when it is called, so that `--version`, `--help` and a typing mistake answer at once.
"""

from __future__ import annotations

from shellwego.cli.root import COMMANDS, root_group, run

HOST_COMMANDS = {
    "up": ("shellwego.boot.up:up", "Run the whole platform on this machine, in the foreground."),
    "server": ("shellwego.boot.parts:server", "Run a control plane alone, for agents and edges elsewhere."),
    "agent": ("shellwego.boot.parts:agent", "Run the VMs of this host, which joined a platform."),
    "edge": ("shellwego.boot.parts:edge", "Take requests on this host, which joined as an edge."),
    "install": ("shellwego.boot.install:install", "Have systemd run one of these on this host."),
    "bus": ("shellwego.boot.businit:bus", "Set up the bus that carries hints between several hosts."),
    "backup": ("shellwego.boot.backupcommands:backup", "Back the whole platform up, and make one of a backup."),
    "doctor": ("shellwego.boot.doctor:doctor", "Check this machine and the platform, with remedies."),
}
HOST_SUBCOMMANDS = {"nodes": {"join": "shellwego.boot.join:join"}}
"""Commands about this machine, in groups of the command line."""


def main() -> None:
    """Entry point; ends the process with an exit code (docs/reference/exit-codes.md)."""
    run(root_group({**HOST_COMMANDS, **COMMANDS}, HOST_SUBCOMMANDS))
