"""Firecracker: `models` are the bodies of its API and `requests` what a VM needs of them, both values; `versions` says which
release takes what, `client` speaks, `vsock` reaches the guest, `snapshots` keeps and loads a VM, whose files `memory` brings
in and out and on what they depend `traits` says; `backend` joins them to the port."""
