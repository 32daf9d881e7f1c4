"""From an OCI image to a root file system: registry client, tar sources, layer merge, squashfs build, the store."""
