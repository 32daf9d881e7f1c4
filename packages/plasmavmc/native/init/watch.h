/*
 * What one turn of the loop waits for. Each descriptor has a flag, `ready`, that stays set until a read or write
 * says "would block"; only what is not ready yet is polled. So a source that we may not read now (no credit, no
 * room) is never polled, and costs no CPU.
 */
#ifndef SWG_WATCH_H
#define SWG_WATCH_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

enum { WATCH_MAX = 160 };

struct watch {
    struct pollfd polled[WATCH_MAX];
    bool *ready[WATCH_MAX];
    nfds_t count;
    int64_t wake_at; /* NEVER, or the first timer */
};

void watch_begin(struct watch *watch);

/* Wait for `events` on fd, unless it is closed (-1) or known to be ready. */
void watch_for(struct watch *watch, int fd, short events, bool *ready);

void watch_until(struct watch *watch, int64_t time_ms);

/* Wait, and set the flags of what is ready. */
void watch_wait(struct watch *watch);

#endif
