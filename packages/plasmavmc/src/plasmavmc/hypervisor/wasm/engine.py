"""What of wasmtime is used, and how it is bound.

Theory. One engine a process, its features fixed: compiled code is only good for the same version, settings and CPU, which
`FINGERPRINT` and the code's own header say. Each run has a store with limits: one memory, bounded; tables, bounded; one
instance. Time is counted in epochs of 10 ms by whoever wants a deadline (`Ticker`); a store without one runs for ever.

Loading compiles in this process, which is the tenant's own: a hostile module that breaks the compiler has broken into
nothing else. Traps: `deserialize` takes native code, so it must only ever see what this tenant's worker made; compiling
with threads would outlive a fork and count against the limit of processes, so it is done by one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import wasmtime

from plasmavmc.hypervisor.wasm.waits import Waits
from plasmavmc.types import MIB

FINGERPRINT = f"wasmtime-{version('wasmtime')}-1"
"""Names version and settings: the number rises when `new_engine` changes."""
TICK_S = 0.01
MAX_STACK_BYTES = MIB
TABLE_ELEMENTS = 1_000_000
TABLES = 16
TRAPPED = 134
"""Exit code of a module that trapped: as of a process that aborted (128 + SIGABRT)."""
INTERRUPTED = 143
"""As of a process that SIGTERM ended."""
_FOREVER = 1 << 62
_NOTHING = '(module (memory (export "memory") 1) (func (export "_start")))'
_PAGE = 64 * 1024
_FULL_SHARE = 8
"""A module that traps with all but one part in so many of its memory in use is said to have run out of it: it is the
module that aborts when `memory.grow` gives it no more, and WebAssembly has no other sign of that."""


class BadModuleError(Exception):
    """It cannot be run: `code` is one of the guest's reasons."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    exit_code: int
    oom: bool = False
    trap: str = ""
    """The trap with its WebAssembly stack; empty where there was none."""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a module as a WASI command."""

    argv: Sequence[str]
    env: Mapping[str, str]
    directory: Path
    """What the module sees as `/`; it may write there."""
    stdout: Callable[[bytes], None] | Path
    """Called in the run's own thread, or a pipe by its path, which costs no call."""
    stderr: Callable[[bytes], None] | Path
    memory_bytes: int
    stdin: Path | None = None
    deadline_s: float | None = None
    began: Callable[[], None] = field(default=lambda: None)
    """Called when the module is instantiated and about to run."""


def new_engine() -> wasmtime.Engine:
    """An engine with our settings. A change here raises the number in `FINGERPRINT`."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.parallel_compilation = False
    config.wasm_multi_memory = False
    config.wasm_threads = False
    config.max_wasm_stack = MAX_STACK_BYTES
    return wasmtime.Engine(config)


class Ticker:
    """Lets epochs pass while anybody waits for one."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self._engine = engine
        self._needed = threading.Event()
        threading.Thread(target=self._tick, name="epochs", daemon=True).start()

    def need(self) -> None:
        """Deadlines exist from now on."""
        self._needed.set()

    def _tick(self) -> None:
        self._needed.wait()
        while True:
            time.sleep(TICK_S)
            self._engine.increment_epoch()


class Sandbox:
    """The engine of a worker and the one module that it runs."""

    def __init__(self) -> None:
        self._engine = new_engine()
        self._linker = wasmtime.Linker(self._engine)
        self._linker.define_wasi()
        self._ticker = Ticker(self._engine)
        self._waits: Waits | None = None
        self._module: wasmtime.Module | None = None

    def warm_up(self, directory: Path) -> None:
        """Run a module that does nothing: the first run in a process takes ten times as long as the next."""
        self.load(bytes(wasmtime.wat2wasm(_NOTHING)), None)
        self.run(Run([], {}, directory, _unheard, _unheard, MIB))

    def load(self, module: bytes, compiled: bytes | None) -> bytes | None:
        """Make the module ready; returns its native code where it had to be compiled.

        Raises:
            BadModuleError: `not-executable`, it is no module that this engine takes.
        """
        if compiled is not None:
            try:
                self._module = wasmtime.Module.deserialize(self._engine, compiled)
            except wasmtime.WasmtimeError:
                compiled = None  # of another version or CPU, or cut short
            else:
                return None
        try:
            self._module = wasmtime.Module(self._engine, module)
        except wasmtime.WasmtimeError as error:
            raise BadModuleError("not-executable", _first_line(error)) from error
        self._check_start()
        return bytes(self._module.serialize())

    def _check_start(self) -> None:
        assert self._module is not None  # noqa: S101 - called by load
        if all(export.name != "_start" for export in self._module.exports):
            raise BadModuleError("not-executable", "the module has no _start: it is no WASI command")

    def run(self, run: Run) -> Ended:
        """Run it to its end.

        Raises:
            BadModuleError: `not-executable`, its imports cannot be satisfied; `memory-limit`, it needs more memory from the
                start than it may have.
        """
        store = wasmtime.Store(self._engine)
        try:
            self._furnish(store, run)
            return self._run_in(store, run)
        finally:
            store.close()  # at once, and with it what the run holds open

    def bound_waits(self) -> None:
        """From now on a module that sleeps beyond its deadline is woken at it. Before any run that has one."""
        self._waits = Waits(self._linker)

    def try_out(self, run: Run) -> None:
        """Instantiate the module, and let it go: whether it could be run. Raises as `run` does."""
        store = wasmtime.Store(self._engine)
        try:
            self._furnish(store, run)
            self._instantiate(store)
        except wasmtime.Trap as trap:
            raise BadModuleError("not-executable", _first_line(trap)) from trap
        finally:
            store.close()

    def _instantiate(self, store: wasmtime.Store) -> wasmtime.Instance:
        assert self._module is not None  # noqa: S101 - the caller loads first
        try:
            return self._linker.instantiate(store, self._module)
        except wasmtime.WasmtimeError as error:
            code = "memory-limit" if "exceeds memory limits" in str(error) else "not-executable"
            raise BadModuleError(code, _first_line(error)) from error

    def _run_in(self, store: wasmtime.Store, run: Run) -> Ended:
        try:
            instance = self._instantiate(store)
        except wasmtime.Trap as trap:
            return self._ended_by(trap, store, None, run)
        exports = instance.exports(store)
        start, memory = exports["_start"], exports.get("memory")
        if not isinstance(start, wasmtime.Func):
            raise BadModuleError("not-executable", "its _start is no function")
        run.began()
        try:
            start(store)
        except wasmtime.ExitTrap as exited:
            return Ended(exited.code & 0xFF)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as trap:
            return self._ended_by(trap, store, memory, run)
        return Ended(0)

    def _furnish(self, store: wasmtime.Store, run: Run) -> None:
        store.set_limits(
            memory_size=run.memory_bytes, table_elements=TABLE_ELEMENTS, instances=1, tables=TABLES, memories=1
        )
        if run.deadline_s is not None:
            self._ticker.need()
        store.set_epoch_deadline(_FOREVER if run.deadline_s is None else max(1, round(run.deadline_s / TICK_S)))
        if self._waits is not None:
            self._waits.begin(run.deadline_s)
        wasi = wasmtime.WasiConfig()
        try:
            self._connect(wasi, run)
            store.set_wasi(wasi)
        except wasmtime.WasmtimeError as error:
            raise BadModuleError("not-executable", _first_line(error)) from error

    @staticmethod
    def _connect(wasi: wasmtime.WasiConfig, run: Run) -> None:
        wasi.argv = list(run.argv)
        wasi.env = list(run.env.items())
        if isinstance(run.stdout, Path):
            wasi.stdout_file = str(run.stdout)
        else:
            wasi.stdout_custom = run.stdout
        if isinstance(run.stderr, Path):
            wasi.stderr_file = str(run.stderr)
        else:
            wasi.stderr_custom = run.stderr
        if run.stdin is not None:
            wasi.stdin_file = str(run.stdin)
        wasi.preopen_dir(str(run.directory), "/")

    @staticmethod
    def _ended_by(
        trap: wasmtime.Trap | wasmtime.WasmtimeError, store: wasmtime.Store, memory: object, run: Run
    ) -> Ended:
        code = trap.trap_code if isinstance(trap, wasmtime.Trap) else None
        if code is wasmtime.TrapCode.INTERRUPT:
            return Ended(INTERRUPTED, timed_out=True, trap=str(trap))
        used = memory.size(store) * _PAGE if isinstance(memory, wasmtime.Memory) else 0
        return Ended(TRAPPED, oom=used > run.memory_bytes - run.memory_bytes // _FULL_SHARE, trap=str(trap))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["?"])[0][:300]


def _unheard(_data: bytes) -> None:
    """Output of a run that has none."""
