"""A VM's way to the network: `backend` is the port; one bridge, a tap a VM, addresses by `ipam`, rules by `firewall`."""
