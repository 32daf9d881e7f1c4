"""Drivers of the KMS port. `ring` is shared by those that hold the master key themselves."""
