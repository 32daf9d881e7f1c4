/*
 * The guest's file tree: the image (squashfs, read-only) under a writable layer, made the root.
 *
 * The layer lives as long as the VM, no longer, so it is mounted `volatile`: an fsync need not reach a disk that
 * nobody will read again.
 */
#ifndef SWG_ROOT_H
#define SWG_ROOT_H

#include <stdbool.h>

#include "failure.h"

/* In the initramfs: /proc, /sys, /dev. */
void root_mount_early(void);

/* Wait for a disk of the VM's. */
bool disk_appears(const char *path);

/* Mount image and layer, and make them /. Fails with `no-root-disk` or `bad-root-disk`. */
bool root_switch(struct failure *failure);

#endif
