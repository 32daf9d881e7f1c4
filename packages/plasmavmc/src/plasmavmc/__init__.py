"""PlasmaVMC: the VM engine of one node."""
