"""Disks of VMs: `backend` is the port, `file`, `reflink` and `memory` are its drivers."""
