#include "watch.h"

#include "clock.h"

void watch_begin(struct watch *watch)
{
    watch->count = 0;
    watch->wake_at = NEVER;
}

void watch_for(struct watch *watch, int fd, short events, bool *ready)
{
    if (fd < 0 || *ready || watch->count == WATCH_MAX)
        return;
    watch->polled[watch->count] = (struct pollfd){.fd = fd, .events = events};
    watch->ready[watch->count++] = ready;
}

void watch_until(struct watch *watch, int64_t time_ms)
{
    watch->wake_at = earlier(watch->wake_at, time_ms);
}

static int timeout_of(const struct watch *watch)
{
    if (watch->wake_at == NEVER)
        return -1;
    int64_t left = watch->wake_at - now_ms();
    return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}

void watch_wait(struct watch *watch)
{
    if (poll(watch->polled, watch->count, timeout_of(watch)) <= 0)
        return;
    for (nfds_t i = 0; i < watch->count; i++)
        if (watch->polled[i].revents)
            *watch->ready[i] = true;
}
