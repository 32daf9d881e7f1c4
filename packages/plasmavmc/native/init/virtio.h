/* The machine's virtio devices, by their kind. Source: VIRTIO 1.2, 5. */
#ifndef SWG_VIRTIO_H
#define SWG_VIRTIO_H

#include <stdbool.h>

enum virtio_kind { VIRTIO_CONSOLE = 3, VIRTIO_VSOCK = 19 };

/* Whether there is such a device; sysfs is mounted, and the transport's driver has found its devices. */
bool virtio_has(enum virtio_kind kind);

#endif
