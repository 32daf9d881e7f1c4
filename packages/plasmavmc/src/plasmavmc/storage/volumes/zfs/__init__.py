"""Volumes on ZFS: OpenZFS 2 or zfs-fuse 0.7."""
