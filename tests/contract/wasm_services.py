"""WebAssembly modules for tests that answer HTTP requests, written as text: each does one thing, honest or not."""

from __future__ import annotations

import wasmtime

HTML = "Content-Type: text/html\\n\\n"


def service(body: str, *, data: str = "", memory: str = "2") -> bytes:
    """A WASI command; `data` lies at 1024, and what `$read` reads at 65536."""
    return bytes(
        wasmtime.wat2wasm(f"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") {memory})
  (data (i32.const 1024) "{data}")
  (func $say (param $stream i32) (param $at i32) (param $length i32) (result i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (call $fd_write (local.get $stream) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func $read (result i32)
    (i32.store (i32.const 16) (i32.const 65536))
    (i32.store (i32.const 20) (i32.const 65536))
    (drop (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
    (i32.load (i32.const 24)))
  (func $sleep (param $seconds i64)
    (i64.store (i32.const 112) (i64.const 0))
    (i32.store (i32.const 120) (i32.const 0))
    (i32.store (i32.const 128) (i32.const 1))
    (i64.store (i32.const 136) (i64.mul (local.get $seconds) (i64.const 1000000000)))
    (i64.store (i32.const 144) (i64.const 0))
    (i32.store (i32.const 152) (i32.const 0))
    (drop (call $poll (i32.const 112) (i32.const 176) (i32.const 1) (i32.const 224))))
  (func (export "_start") (local $count i32) {body}))
""")
    )


def says(text: str) -> bytes:
    """Prints a text, with the escapes of the text format."""
    return service(_said(text), data=text)


def _said(text: str) -> str:
    length = len(text.encode().decode("unicode_escape").encode("latin-1"))
    return f"(drop (call $say (i32.const 1) (i32.const 1024) (i32.const {length})))"


def answers(text: str, *, status: str = "200 OK") -> bytes:
    """Answers each request with this text."""
    return says(f"Status: {status}\\nContent-Type: text/plain\\n\\n{text}")


ECHO = service(
    f"""{_said(HTML)}
    (loop $more
      (local.set $count (call $read))
      (if (local.get $count) (then
        (drop (call $say (i32.const 1) (i32.const 65536) (local.get $count)))
        (br $more))))""",
    data=HTML,
)
"""Answers with the request's body."""
VARIABLES = service(
    f"""{_said(HTML)}
    (drop (call $environ_sizes (i32.const 32) (i32.const 36)))
    (drop (call $environ (i32.const 65536) (i32.const 70000)))
    (drop (call $say (i32.const 1) (i32.const 70000) (i32.load (i32.const 36))))""",
    data=HTML,
)
"""Answers with its variables, each ended by a zero byte."""
ENDLESS = service(
    f"{_said(HTML)} (loop $more (br_if $more (i32.eqz (call $say (i32.const 1) (i32.const 1024) (i32.const 60000)))))",
    data=HTML,
)
"""An answer without an end, as long as anybody takes it."""
SLEEPS = service("(call $sleep (i64.const 100000))")
"""For longer than any test."""
FALTERS = service(f"{_said(HTML + 'half')} (call $sleep (i64.const 0)) unreachable", data=HTML + "half")
"""Begins an answer, and traps."""
HALTS = service(f"{_said(HTML + 'done')} (call $exit (i32.const 7))", data=HTML + "done")
"""Answers, and ends with an error."""
LONG = says(r"Content-Type: text/plain\nContent-Length: 3\n\nmore than that")
SHORT = says(r"Content-Type: text/plain\nContent-Length: 100\n\nless")
COMPLAINS = service(
    f"(drop (call $say (i32.const 2) (i32.const 1024) (i32.const 8))) {_said(HTML)}",
    data=HTML,
)
"""Says something on stderr, and answers with nothing."""
