"""WebAssembly modules for tests, written as text: each does one thing, honest or not."""

from __future__ import annotations

import wasmtime


def module(body: str, *, data: str = "", memory: str = "1") -> bytes:
    """A WASI command whose `_start` is `body`; `data` lies at 1024."""
    return bytes(
        wasmtime.wat2wasm(f"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "sock_accept" (func $sock_accept (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
  (memory (export "memory") {memory})
  (data (i32.const 1024) "{data}")
  (func $say (param $stream i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (local.get $stream) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $open (param $at i32) (param $length i32) (param $create i32) (result i32)
    (call $path_open (i32.const 3) (i32.const 1) (local.get $at) (local.get $length) (local.get $create)
      (i64.const 0x42) (i64.const 0) (i32.const 0) (i32.const 16)))
  (func (export "_start") {body}))
""")
    )


SAY = module("(call $say (i32.const 1) (i32.const 1024) (i32.const 6)) (call $exit (i32.const 3))", data="hello\\n")
LOOP = module("(loop $forever (br $forever))")
TRAP = module("unreachable")
DEEP = module("(call 8)")
"""Calls itself for ever: it is function 8, after six imports and two of its own."""
VARIABLES = module("(drop (call $environ_sizes (i32.const 0) (i32.const 4))) (call $exit (i32.load (i32.const 0)))")
"""Ends with the number of its variables."""
FLOOD = module("(loop $forever (call $say (i32.const 1) (i32.const 1024) (i32.const 60000)) (br $forever))", memory="2")
GREEDY = module("unreachable", memory="8000")
"""500 MiB from the start."""
GROWS = module("""
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    unreachable""")
"""Takes what it can get, and aborts when it gets no more, as allocators do."""


def opens(path: str, *, create: bool = False) -> bytes:
    """Ends with the error number of opening a path (0: it could)."""
    flags = 1 if create else 0
    return module(
        f"(call $exit (call $open (i32.const 1024) (i32.const {len(path.encode())}) (i32.const {flags})))", data=path
    )


ACCEPTS = module("(call $exit (call $sock_accept (i32.const 3) (i32.const 0) (i32.const 16)))")
"""Ends with the error number of the only thing that WASI preview 1 can do with sockets: accept on one it was given."""
UNKNOWN_IMPORT = bytes(
    wasmtime.wat2wasm(
        '(module (import "env" "socket" (func $s)) (memory (export "memory") 1) (func (export "_start")))'
    )
)
LIBRARY = bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "add")))'))
"""A module, and no command."""
