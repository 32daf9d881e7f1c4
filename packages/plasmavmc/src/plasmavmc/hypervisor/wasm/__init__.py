"""Backend `wasm`: WebAssembly modules, each in a worker process of its own. `docs/design/wasm.md` tells how and why."""
