/*
 * Volumes: disks that outlive the VM, mounted where the configuration says.
 *
 * The host lays a small file system into a new volume, and no more: it is grown here to its disk, at each start and when
 * the host says that the disk has grown, so that what a guest wrote is only ever read by a guest.
 */
#ifndef SWG_VOLUMES_H
#define SWG_VOLUMES_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"
#include "failure.h"
#include "orders.h"

/* Mount them all, below the root that is in place. Fails with `no-volume-disk` or `bad-volume`. */
bool volumes_mount(const struct config *config, struct failure *failure);

/* Carry out an order of the host's for the volume on a disk (2 is vdc). Fails with `no-volume`, `not-frozen` … */
bool volumes_order(enum order order, unsigned disk, uint64_t size, struct failure *failure);

/* Every process is killed: unmount them, so that nothing is unwritten and the next mount has nothing to replay. */
void volumes_finish(void);

#endif
