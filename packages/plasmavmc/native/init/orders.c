#include "orders.h"

#include <string.h>

#include "bytes.h"
#include "clock.h"
#include "guest.h"

void orders_init(struct orders *orders)
{
    *orders = (struct orders){.thaw_at = NEVER};
}

static bool carry_out(struct orders *orders, const struct machine *machine, uint64_t size)
{
    bool freezing = orders->order == ORDER_FREEZE, thawing = orders->order == ORDER_THAW;
    if (freezing && orders->thaw_at != NEVER)
        return fail(&orders->failure, "not-frozen", "another volume is frozen");
    if (thawing && (orders->thaw_at == NEVER || orders->frozen != orders->disk))
        return fail(&orders->failure, "not-frozen", "the volume is not frozen any more");
    if (thawing)
        orders->thaw_at = NEVER;
    if (!machine->volume(orders->order, orders->disk, size, &orders->failure))
        return false;
    if (freezing) {
        orders->frozen = orders->disk;
        orders->thaw_at = now_ms() + FROZEN_MOST_MS;
    }
    return true;
}

void orders_take(struct orders *orders, const struct machine *machine, const uint8_t *raw, size_t length)
{
    if (length != ORDER_BYTES)
        return;
    memset(&orders->failure, 0, sizeof orders->failure);
    orders->order = raw[0];
    orders->disk = raw[1];
    orders->tell = true;
    carry_out(orders, machine, get_u64(raw + 2));
}

void orders_watch(const struct orders *orders, struct watch *watch)
{
    watch_until(watch, orders->thaw_at);
}

void orders_turn(struct orders *orders, const struct machine *machine)
{
    struct failure failure;
    if (orders->thaw_at == NEVER || now_ms() < orders->thaw_at)
        return;
    orders->thaw_at = NEVER;
    if (!machine->volume(ORDER_THAW, orders->frozen, 0, &failure))
        say("%s", failure.message);
}
