/* Milliseconds that only go forward; they stand still for nobody's clock_settime. */
#ifndef SWG_CLOCK_H
#define SWG_CLOCK_H

#include <stdint.h>
#include <time.h>

enum { NEVER = -1 };

static inline int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The earlier of two points in time, where NEVER is later than all. */
static inline int64_t earlier(int64_t a, int64_t b)
{
    if (a == NEVER || b == NEVER)
        return a == NEVER ? b : a;
    return a < b ? a : b;
}

#endif
