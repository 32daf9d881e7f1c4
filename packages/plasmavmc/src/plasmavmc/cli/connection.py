"""How a command reaches the server: by what the root command was given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plasmavmc.cli.ends import USAGE, Failure

if TYPE_CHECKING:
    from plasmavmc.rpc.client import ClientTls
    from plasmavmc.types import Scope

TOKEN_VARIABLE = "PLASMAVMC_TOKEN"  # noqa: S105 - the name of a variable
DEFAULT_PROJECT = "default/default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What the root command was given."""

    server: str = "unix:/run/plasmavmc/plasmavmc.sock"
    project: str = ""
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None

    def scope(self) -> Scope | None:
        """Whose things are meant; None leaves that to the server, which knows who has exactly one."""
        from plasmavmc.types import Scope  # noqa: PLC0415

        local_root = self.server.startswith("unix:") and not self.token() and os.geteuid() == 0
        project = self.project or (DEFAULT_PROJECT if local_root else "")
        if not project:
            return None
        org, slash, name = project.partition("/")
        if not (org and slash and name) or "/" in name:
            raise Failure(f"--project: {project[:80]!r} is not ORG/PROJECT", code=USAGE)
        return Scope(org, name)

    def token(self) -> str:
        """The token, which never comes by a command line: all users of a host see those."""
        if self.token_file is None:
            return os.environ.get(TOKEN_VARIABLE, "")
        try:
            return self.token_file.read_text().strip()
        except OSError as error:
            raise Failure(f"--token-file: {self.token_file} cannot be read: {error.strerror}", code=USAGE) from error

    def tls(self) -> ClientTls | None:
        """Certificates: ours with its key where there is one, and always the authority of the server's."""
        from plasmavmc.rpc.client import ClientTls  # noqa: PLC0415

        if self.tls_ca and bool(self.tls_cert) == bool(self.tls_key):
            return ClientTls(self.tls_cert, self.tls_key, self.tls_ca)
        if self.tls_cert or self.tls_key or self.tls_ca:
            raise Failure("give --tls-cert and --tls-key together, and --tls-ca with them", code=USAGE)
        return None


def connection() -> Connection:
    """What the running command was given."""
    found = click.get_current_context().find_object(Connection)
    return found if found is not None else Connection()
