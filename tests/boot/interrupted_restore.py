"""A restore into PostgreSQL that ends as it is about to rename the data directory into its place; a program of its own.

Arguments: the backup, the data directory, the configuration, the database's URL. The passphrase is on standard input.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from shellwego.boot.backup import Place, restore
from shellwego.boot.settings import UpSettings
from shellwego.core.sensitive import Sensitive

KILLED = 9


def main(backup: Path, data_dir: Path, config: Path, url: str) -> None:
    def end(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(arguments[1]) == data_dir:
            os._exit(KILLED)

    sys.addaudithook(end)
    place = Place(settings=UpSettings(data_dir=data_dir, database_url=url), config_file=config)
    restore(place, backup, Sensitive.of(sys.stdin.read()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4])
