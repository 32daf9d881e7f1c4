/*
 * What the host orders about a volume while the workload runs, and the answer to it.
 *
 * A file system that is frozen lets nobody write. A host that vanishes meanwhile must not leave one so: it is thawed after a
 * while, and a host that comes too late is told that it was not frozen any more.
 */
#ifndef SWG_ORDERS_H
#define SWG_ORDERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "failure.h"
#include "watch.h"

enum { FROZEN_MOST_MS = 20000, ORDER_BYTES = 10 };

enum order { ORDER_FREEZE = 1, ORDER_THAW = 2, ORDER_GROW = 3 };

struct machine;

struct orders {
    bool tell; /* the host waits for the answer */
    uint8_t order, disk;
    struct failure failure; /* of the last one; no code: it was carried out */
    int64_t thaw_at;
    uint8_t frozen; /* the disk to thaw then */
};

void orders_init(struct orders *orders);

/* Carry out u8 order, u8 disk, u64 size. What is no order is passed over. */
void orders_take(struct orders *orders, const struct machine *machine, const uint8_t *raw, size_t length);

void orders_watch(const struct orders *orders, struct watch *watch);
void orders_turn(struct orders *orders, const struct machine *machine);

#endif
