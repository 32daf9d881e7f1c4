"""QEMU `microvm`: `argv` is the command line as a value, `qmp` its monitor, `sockets` where its sockets lie, `migration` and
`traits` a guest's state; `backend` joins them to the port."""
