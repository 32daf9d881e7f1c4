/* Holding and letting go: in order, with every way to fail, and never for ever. */

#include <string.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "guest.h"

static bool holding, stands_still, can_hold, can_renew;
static int settled, renewed;

static bool machine_hold(bool on)
{
    if (can_hold)
        holding = on;
    return can_hold;
}

static bool machine_held(void)
{
    return stands_still;
}

static void machine_settle(void)
{
    CHECK(holding);
    settled++;
}

static bool machine_renew(const struct identity_card *card, struct failure *failure)
{
    (void)card;
    CHECK(holding);
    renewed++;
    return can_renew || fail(failure, "bad-network", "no such place");
}

static const struct machine machine = {
    .hold = machine_hold, .held = machine_held, .settle = machine_settle, .renew = machine_renew};
static const struct identity_card anew = {.generation = 1}, as_before = {0};
static const struct command workload = {0};

static struct hold fresh(void)
{
    struct hold hold;
    hold_init(&hold);
    holding = false;
    stands_still = can_hold = can_renew = true;
    settled = renewed = 0;
    return hold;
}

static struct hold held(void)
{
    struct hold hold = fresh();
    hold_begin(&hold, &machine);
    hold_turn(&hold, &machine, false);
    CHECK(hold.state == HOLD_HELD && hold.tell_held && !hold.failure.code[0] && holding && settled == 1);
    hold.tell_held = false;
    return hold;
}

static void test_held_once_all_stand_still(void)
{
    struct hold hold = fresh();
    stands_still = false;
    hold_begin(&hold, &machine);
    hold_turn(&hold, &machine, false);
    CHECK(holding && hold.state == HOLD_BEGUN && !hold.tell_held && settled == 0);
    stands_still = true;
    hold_turn(&hold, &machine, false);
    CHECK(hold.state == HOLD_HELD && hold.tell_held && settled == 1);
}

static void test_who_does_not_stand_still_runs_on(void)
{
    struct hold hold = fresh();
    stands_still = false;
    hold_begin(&hold, &machine);
    hold.give_up = now_ms();
    hold_turn(&hold, &machine, false);
    CHECK(!holding && hold.state == HOLD_NONE && hold.tell_held && !strcmp(hold.failure.code, "not-held"));
}

static void test_a_guest_that_cannot_says_so(void)
{
    struct hold hold = fresh();
    can_hold = false;
    hold_begin(&hold, &machine);
    CHECK(hold.state == HOLD_NONE && hold.tell_held && !strcmp(hold.failure.code, "not-held"));
    hold = fresh();
    hold_refuse(&hold);
    CHECK(hold.tell_held && !strcmp(hold.failure.code, "not-running"));
}

static void test_it_is_renewed_before_it_goes_on(void)
{
    struct hold hold = held();
    hold_end(&hold, &machine, &anew, &workload);
    CHECK(renewed == 1 && !holding && hold.state == HOLD_NONE && hold.tell_free && !hold.failure.code[0]);
}

static void test_what_cannot_be_renewed_never_goes_on(void)
{
    struct hold hold = held();
    can_renew = false;
    hold_end(&hold, &machine, &anew, &workload);
    CHECK(holding && hold.tell_free && !strcmp(hold.failure.code, "bad-network"));
    hold_turn(&hold, &machine, true);
    CHECK(hold.alone_until == NEVER && holding);
}

static void test_a_second_word_changes_nothing(void)
{
    struct hold hold = held();
    hold_begin(&hold, &machine);
    CHECK(hold.tell_held && settled == 1);
    hold_end(&hold, &machine, &as_before, &workload);
    hold.tell_free = false;
    hold_end(&hold, &machine, &as_before, &workload);
    CHECK(hold.tell_free && renewed == 1 && hold.state == HOLD_NONE);
}

static void test_a_guest_without_a_host_goes_on_by_itself(void)
{
    struct hold hold = held();
    hold_turn(&hold, &machine, false);
    CHECK(hold.alone_until == NEVER);
    hold_turn(&hold, &machine, true);
    CHECK(hold.alone_until > now_ms() + HOLD_ALONE_MS / 2 && holding);
    hold_turn(&hold, &machine, false);
    CHECK(hold.alone_until == NEVER);
    hold_turn(&hold, &machine, true);
    hold.alone_until = now_ms();
    hold_turn(&hold, &machine, true);
    CHECK(!holding && hold.state == HOLD_NONE && renewed == 0);
}

static void test_a_new_host_ends_what_an_older_one_began_and_finds_what_it_finished(void)
{
    struct hold hold = fresh();
    stands_still = false;
    hold_begin(&hold, &machine);
    hold_new_host(&hold, &machine);
    CHECK(!holding && hold.state == HOLD_NONE);
    hold = held();
    hold.tell_held = true;
    hold_new_host(&hold, &machine);
    CHECK(holding && hold.state == HOLD_HELD && !hold.tell_held);
}

static void test_the_hook_decides_whether_it_goes_on(void)
{
    struct hold hold = held();
    hold.state = HOLD_HOOK;
    hold.hook = 77;
    CHECK(!hold_reaped(&hold, &machine, 78, 0));
    CHECK(hold_reaped(&hold, &machine, 77, 0) && !holding && hold.tell_free && !hold.failure.code[0]);
    hold = held();
    hold.state = HOLD_HOOK;
    hold.hook = 77;
    CHECK(hold_reaped(&hold, &machine, 77, 3) && holding && hold.tell_free && !strcmp(hold.failure.code, "bad-hook"));
    hold_turn(&hold, &machine, true);
    CHECK(holding && hold.alone_until == NEVER);
}

int main(void)
{
    test_held_once_all_stand_still();
    test_who_does_not_stand_still_runs_on();
    test_a_guest_that_cannot_says_so();
    test_it_is_renewed_before_it_goes_on();
    test_what_cannot_be_renewed_never_goes_on();
    test_a_second_word_changes_nothing();
    test_a_guest_without_a_host_goes_on_by_itself();
    test_a_new_host_ends_what_an_older_one_began_and_finds_what_it_finished();
    test_the_hook_decides_whether_it_goes_on();
    return 0;
}
