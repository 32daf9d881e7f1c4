"""A platform's place with everything in it, for backups and restores."""

from __future__ import annotations

import json
from pathlib import Path

from shellwego.boot.backup import DATABASE, Place
from shellwego.boot.settings import UpSettings
from shellwego.control.sealing import Sealer, keep
from shellwego.control.unit import Control, Unit
from shellwego.core.envelope import Label, SealedValue
from shellwego.core.sensitive import Sensitive
from shellwego.drivers.bus.memory import MemoryBus
from shellwego.drivers.clock.system import SystemClock
from shellwego.drivers.kms.local import FileKms
from shellwego.drivers.store import dump, migrate
from shellwego.drivers.store.location import Location
from shellwego.drivers.store.postgres import open_postgres
from shellwego.drivers.store.sqlite import open_sqlite
from shellwego.ports.store import Store
from tests.contract.store_samples import SAMPLES, user

WORDS = Sensitive.of("correct horse battery staple")
CONFIG = 'domain = "example.org"\n'
BOUND = Label(purpose="test", subject="sec_x")


class World:
    """A platform's place, with everything in it, an empty place beside it, and a backup."""

    def __init__(self, directory: Path, target: Location | None = None) -> None:
        self.directory = directory
        self.config = directory / "etc" / "config.toml"
        self.here = self.place("here")
        self.there = self.place("there", target)
        self.backup = directory / "backup"

    def place(self, name: str, location: Location | None = None) -> Place:
        url = "" if location is None or isinstance(location, Path) else location.dsn
        return Place(settings=UpSettings(data_dir=self.directory / name, database_url=url), config_file=self.config)

    async def fill(self) -> None:
        """A row in every table at least, and a secret."""
        self.config.parent.mkdir()
        self.config.write_text(CONFIG)
        data = self.here.data_dir
        (data / "db").mkdir(parents=True)
        (data / "keys").mkdir()
        (data / "installation").write_text("swg_0123456789abcdef0123\n")
        kms = FileKms.open(data / "keys" / "master-keys.json")
        store = opened(self.here.database)
        control = Control(store, MemoryBus(), SystemClock())
        sealing = await Sealer(control, kms).seal(Sensitive.of("a secret"), BOUND)

        def work(unit: Unit) -> SealedValue:
            for table, sample in SAMPLES.items():
                getattr(unit.tx, table).insert(sample)
            for number in range(600):
                unit.tx.users.insert(user(f"{number}-“ü” 🐢"))
            return keep(unit, sealing)

        value = await control.commit(work)
        (self.directory / "value").write_text(json.dumps([value.key_id, value.nonce.hex(), value.ciphertext.hex()]))
        await store.close()

    async def unsealed(self, place: Place) -> str:
        """The secret, as the platform at this place opens it."""
        key_id, nonce, ciphertext = json.loads((self.directory / "value").read_text())
        sealed = SealedValue(key_id=key_id, nonce=bytes.fromhex(nonce), ciphertext=bytes.fromhex(ciphertext))
        store = opened(place.database)
        kms = FileKms.open(place.data_dir / "keys" / "master-keys.json")
        try:
            control = Control(store, MemoryBus(), SystemClock())
            return (await Sealer(control, kms).unseal(sealed, BOUND)).reveal_text()
        finally:
            await store.close()


def opened(location: Location) -> Store:
    return open_sqlite(location, SystemClock()) if isinstance(location, Path) else open_postgres(location)


def rows(location: Location) -> dict[str, list[bytes]]:
    """All of a database."""
    with dump.snapshot(location) as tables:
        return {name: list(read()) for name, read in tables.items()}


def new_database(place: Place) -> Path:
    """One of this version, without rows."""
    (place.data_dir / "db").mkdir(parents=True)
    path = place.data_dir / DATABASE
    migrate.upgrade(path)
    return path
