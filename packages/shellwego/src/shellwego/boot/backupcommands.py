"""`swg backup`: the whole platform into a directory, and out of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shellwego.boot.up import UpFailure, up_settings
from shellwego.core.errors import ConflictError, InvalidError, ShellWeGoError, UnavailableError
from shellwego.core.sensitive import Sensitive

if TYPE_CHECKING:
    from shellwego.boot.backup import Place
    from shellwego.boot.backupfiles import Manifest

F = TypeVar("F", bound=Callable[..., Any])
PASSPHRASE = "SHELLWEGO_BACKUP_PASSPHRASE"  # noqa: S105 - a name
LEAST = 12
"""Characters of a passphrase."""
_OBJECTS = "objects/"
_ALL = "all"
_NOT_IN_IT = "Not in it: {volumes}, images, logs, and passphrases."
_ELSEWHERE = {
    "given": "The master keys are given from outside and are not in it: keep them.",
    "vault": "The master key is Vault's and is not in it.",
    "aws": "The master key is AWS KMS' and is not in it.",
}


def _options(command: F) -> F:
    for option in (
        click.option("--data-dir", type=click.Path(), help="Where the platform keeps everything. [/var/lib/shellwego]"),
        click.option(
            "--database-url-file", metavar="FILE", help="File with the URL of a PostgreSQL database. [SQLite]"
        ),
        click.option(
            "--passphrase-file",
            type=click.Path(path_type=Path),
            help=f"Its mode is 0600. Else ${PASSPHRASE}, else it is asked for.",
        ),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def backup() -> None:
    """Keep the whole platform in a directory, sealed by a passphrase, and make one of it."""


@backup.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--volumes", metavar="all|NAME,…", help="Have what these volumes hold in it; the platform has to run. [none]"
)
@_options
def create(
    directory: Path,
    volumes: str | None,
    data_dir: str | None,
    database_url_file: str | None,
    passphrase_file: Path | None,
) -> None:
    """Back the platform up into DIRECTORY, which must be new. The platform may run meanwhile.

    Run it as root, on a host of the control plane. Without the passphrase nothing can be had back.
    """
    from shellwego.boot.backup import create as run  # noqa: PLC0415 - heavy, and not needed for --help

    left_out: set[str] = set()

    def work(place: Place, passphrase: Sensitive) -> Manifest:
        names = [name for name in _names(volumes) or () if name != "none"]
        return run(place, directory.absolute(), passphrase, time.time(), names, left_out=left_out.update)

    manifest = _done(work, data_dir, database_url_file, passphrase_file, twice=True)
    click.echo(f"Backed up to {directory}: {len(manifest.pieces)} pieces, schema {manifest.revision}.")
    click.echo(_told(manifest), err=True)
    if left_out:
        _tell_left_out(directory, left_out, named=_names(volumes) != (_ALL,))


@backup.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--volumes", metavar="all|none|NAME,…", help="Which of the volumes in it are made anew; needed where it holds some."
)
@click.option(
    "--no-config", is_flag=True, help="Leave the configuration file in it out; the API's certificate and key come back."
)
@_options
def restore(
    directory: Path,
    volumes: str | None,
    *,
    no_config: bool,
    data_dir: str | None,
    database_url_file: str | None,
    passphrase_file: Path | None,
) -> None:
    """Make a platform of the backup in DIRECTORY, where there is none: on an empty data directory and database.

    Run it as root. The backup is read to its end first; then all of it is there, or nothing.
    """
    from shellwego.boot.backup import restore as run  # noqa: PLC0415 - as above

    def work(place: Place, passphrase: Sensitive) -> Manifest:
        return run(place, directory.absolute(), passphrase, _names(volumes), configuration=not no_config)

    manifest = _done(work, data_dir, database_url_file, passphrase_file, twice=False)
    click.echo(f"Restored from {directory}. Start the platform as before: swg up, or swg server.")
    click.echo(_told(manifest), err=True)


def _done(
    work: Callable[[Place, Sensitive], Manifest],
    data_dir: str | None,
    database_url_file: str | None,
    passphrase_file: Path | None,
    *,
    twice: bool,
) -> Manifest:
    from shellwego.drivers.store import dump  # noqa: PLC0415 - as above

    try:
        place = _place({"data_dir": data_dir, "database_url_file": database_url_file})
        words = _passphrase(passphrase_file, twice=twice)
        with dump.told(place.database):
            return work(place, words)
    except ShellWeGoError as error:
        raise UpFailure(error) from error
    except OSError as error:
        raise UpFailure(UnavailableError("host-failed", f"{error.filename or 'the host'}: {error.strerror}")) from error


def _place(flags: dict[str, str | None]) -> Place:
    from shellwego.boot.backup import Place  # noqa: PLC0415 - as above
    from shellwego.boot.configfile import CONFIG_FILE  # noqa: PLC0415
    from shellwego.boot.preflight import PreflightError, check_user  # noqa: PLC0415

    if os.geteuid() != 0:
        words = "a backup is made and restored by root, who alone reads all that the platform keeps"
        raise PreflightError("not-root", words, resolution="Run: sudo swg backup …")
    return Place(settings=up_settings(flags), config_file=CONFIG_FILE, owner=check_user())


def _passphrase(path: Path | None, *, twice: bool) -> Sensitive:
    """From the file, else the environment, else the terminal; raises `InvalidError`, without a word of it."""
    given = os.environ.pop(PASSPHRASE, "")
    if path is not None:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_mode & 0o077:
                raise InvalidError(
                    "open-passphrase", f"{path} can be read by others than its owner", resolution=f"chmod 600 {path}"
                )
            given = stream.read(4096).decode(errors="replace").strip()
    elif not given and sys.stdin.isatty():
        given = click.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=twice)
    if not given:
        raise InvalidError("no-passphrase", "no passphrase is given", resolution=f"--passphrase-file, or ${PASSPHRASE}")
    if twice and len(given) < LEAST:
        raise InvalidError("weak-passphrase", f"a backup's passphrase has at least {LEAST} characters")
    return Sensitive.of(given)


def _names(given: str | None) -> tuple[str, ...] | None:
    """What stands after `--volumes`; raises `InvalidError`."""
    if given is None:
        return None
    names = tuple(name.strip() for name in given.split(","))
    if not all(names) or (len(names) > 1 and {"all", "none"} & set(names)):
        raise InvalidError("bad-volumes", f"--volumes: {given!r:.100} is neither all nor names of volumes, with commas")
    return names


def _tell_left_out(directory: Path, volumes: Collection[str], *, named: bool) -> None:
    """Raises `UpFailure` where they were asked for one by one: who asks for all has what there was at the end."""
    click.echo(
        f"Not in it, since their backups were deleted meanwhile: the volumes {', '.join(sorted(volumes))}.", err=True
    )
    if named:
        raise UpFailure(
            ConflictError(
                "volumes-left-out",
                f"{directory} is kept and whole, but without volumes that were asked for by name",
                resolution="Back up into another directory, once nobody deletes their backups.",
            )
        )


def _told(manifest: Manifest) -> str:
    some = any(piece.name.startswith(_OBJECTS) for piece in manifest.pieces)
    missing = _NOT_IN_IT.format(volumes="what other volumes hold" if some else "what volumes hold")
    return " ".join(filter(None, (missing, _ELSEWHERE.get(manifest.kms, ""))))
