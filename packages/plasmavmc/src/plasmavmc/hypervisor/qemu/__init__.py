"""QEMU `microvm`: `argv` is the command line as a value, `process` the VMM seen from outside, `qmp` and `console` its
sockets, `backend` joins them to the port."""
