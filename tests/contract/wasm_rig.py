"""The real WebAssembly backend for the hypervisor contract: the root helper in a namespace of its own, and modules written
as text."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import wasmtime

from plasmavmc.hypervisor.backend import DiskPlan, VmPlan
from plasmavmc.hypervisor.wasm.backend import WasmBackend
from plasmavmc.hypervisor.wasm.cache import CodeCache
from plasmavmc.types import VmSpec, vm_key
from tests.contract.helper_rig import HelperRig
from tests.contract.host_rig import RealHelper, real_helper

APP = """
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 64) (i32.const 1024)))
    (if (i32.ge_u (i32.load (i32.const 0)) (i32.const 3))
      (then (call $exit (i32.sub (i32.load8_u (i32.load (i32.const 72))) (i32.const 48)))))
    (loop $forever (br $forever))))
"""
"""`exit N` ends with N (one digit); with fewer arguments it runs until it is stopped, busily."""


class WasmRig(HelperRig):
    """Implements `Rig`."""

    def __init__(self, helper: RealHelper, directory: Path, *, spares: int) -> None:
        super().__init__(helper, directory)
        self.module = wasmtime.wat2wasm(APP)
        self.service_port: int | None = None
        self._spares = spares
        self.backend = self._new_backend()

    def _new_backend(self) -> WasmBackend:
        cache = CodeCache(self.directory / "code")
        return WasmBackend(self.helper.host, self.helper.names, cache, spares=self._spares)

    def plan(self, spec: VmSpec) -> VmPlan:
        key = vm_key(spec.id)
        runtime_dir = self.directory / key
        runtime_dir.mkdir(mode=0o700, exist_ok=True)
        module = self.directory / f"{key}.wasm"
        module.write_bytes(self.module)
        disks = (DiskPlan("image", self._open(module, os.O_RDONLY), read_only=True),)
        return VmPlan(key, runtime_dir, Path("/"), Path("/"), disks, service_port=self.service_port)

    def broken_plan(self, spec: VmSpec) -> VmPlan:
        return replace(self.plan(spec), disks=())

    def restart(self) -> None:
        self.backend.close()
        self.backend = self._new_backend()

    def close(self) -> None:
        self.backend.close()
        super().close()


@asynccontextmanager
async def wasm_rig(tmp_path: Path, *, spares: int = 0) -> AsyncIterator[WasmRig]:
    """A rig that leaves nothing behind."""
    directory = Path(tempfile.mkdtemp(prefix="swgwa-"))
    try:
        async with real_helper(tmp_path) as helper:
            rig = WasmRig(helper, directory, spares=spares)
            try:
                yield rig
            finally:
                rig.close()
    finally:
        shutil.rmtree(directory)
