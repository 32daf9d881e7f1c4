#include "hold.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "guest.h"
#include "spawn.h"

enum { ASK_AGAIN_MS = 1 };

static char hook_path[] = "/etc/shellwego/restored";

void hold_init(struct hold *hold)
{
    *hold = (struct hold){.give_up = NEVER, .alone_until = NEVER};
}

static void no_failure(struct hold *hold)
{
    memset(&hold->failure, 0, sizeof hold->failure);
}

static void let_go(struct hold *hold, const struct machine *machine)
{
    machine->hold(false);
    hold->state = HOLD_NONE;
    hold->wanting = false;
    hold->give_up = hold->alone_until = NEVER;
}

void hold_begin(struct hold *hold, const struct machine *machine)
{
    no_failure(hold);
    if (hold->state == HOLD_HELD) {
        hold->tell_held = true;
        return;
    }
    if (hold->state != HOLD_NONE)
        return;
    if (!machine->hold(true)) {
        fail(&hold->failure, "not-held", "this guest cannot hold its processes");
        hold->tell_held = true;
        return;
    }
    hold->state = HOLD_BEGUN;
    hold->give_up = now_ms() + HOLD_PATIENCE_MS;
}

void hold_refuse(struct hold *hold)
{
    fail(&hold->failure, "not-running", "there is no workload that runs");
    hold->tell_held = true;
}

/* As the workload's user and with its environment, while the workload itself is held. */
static bool start_hook(struct hold *hold, const struct command *workload)
{
    struct spawned spawned;
    struct failure failure;
    char *arguments[] = {hook_path, NULL};
    struct command command = *workload;
    struct spawn_io io = {.in = open("/dev/null", O_RDWR | O_CLOEXEC), .apart = true};
    command.arguments = (struct texts){.items = arguments, .count = 1};
    command.terminal = false;
    io.out = io.error = io.in;
    bool started = io.in >= 0 && spawn(&command, &io, &spawned, &failure);
    if (io.in >= 0)
        close(io.in);
    if (!started)
        return false;
    close(spawned.status);
    hold->hook = spawned.pid;
    hold->give_up = now_ms() + HOLD_HOOK_MS;
    hold->state = HOLD_HOOK;
    return true;
}

void hold_end(struct hold *hold, const struct machine *machine, const struct identity_card *card,
              const struct command *command)
{
    if (hold->state == HOLD_HOOK)
        return;
    no_failure(hold);
    hold->tell_free = true;
    if (hold->state == HOLD_NONE)
        return;
    hold->wanting = hold->state == HOLD_HELD && !machine->renew(card, &hold->failure);
    if (hold->wanting)
        return;
    if (card->generation && access(hook_path, X_OK) == 0) {
        hold->wanting = !start_hook(hold, command);
        hold->tell_free = hold->wanting;
        if (hold->wanting)
            fail(&hold->failure, "bad-hook", "%s could not be started", hook_path);
        return;
    }
    let_go(hold, machine);
}

void hold_new_host(struct hold *hold, const struct machine *machine)
{
    hold->tell_held = hold->tell_free = false;
    hold->alone_until = NEVER;
    if (hold->state == HOLD_BEGUN)
        let_go(hold, machine);
}

void hold_watch(const struct hold *hold, struct watch *watch)
{
    watch_until(watch, hold->state == HOLD_BEGUN ? now_ms() + ASK_AGAIN_MS : hold->give_up);
    watch_until(watch, hold->alone_until);
}

static void await_standstill(struct hold *hold, const struct machine *machine)
{
    if (machine->held()) {
        machine->settle();
        hold->state = HOLD_HELD;
        hold->give_up = NEVER;
        hold->tell_held = true;
    } else if (now_ms() >= hold->give_up) {
        let_go(hold, machine);
        fail(&hold->failure, "not-held", "a process did not stand still within %d ms", HOLD_PATIENCE_MS);
        hold->tell_held = true;
    }
}

static void await_host(struct hold *hold, const struct machine *machine, bool host_away)
{
    if (!host_away || hold->wanting)
        hold->alone_until = NEVER;
    else if (hold->alone_until == NEVER)
        hold->alone_until = now_ms() + HOLD_ALONE_MS;
    else if (now_ms() >= hold->alone_until)
        let_go(hold, machine);
}

void hold_turn(struct hold *hold, const struct machine *machine, bool host_away)
{
    if (hold->state == HOLD_BEGUN)
        await_standstill(hold, machine);
    else if (hold->state == HOLD_HELD)
        await_host(hold, machine, host_away);
    else if (hold->state == HOLD_HOOK && hold->give_up != NEVER && now_ms() >= hold->give_up) {
        hold->give_up = NEVER;
        kill(-hold->hook, SIGKILL);
        kill(hold->hook, SIGKILL);
    }
}

bool hold_reaped(struct hold *hold, const struct machine *machine, pid_t pid, int code)
{
    if (hold->state != HOLD_HOOK || pid != hold->hook)
        return false;
    hold->tell_free = true;
    hold->give_up = NEVER;
    hold->wanting = code != 0;
    if (hold->wanting) {
        hold->state = HOLD_HELD;
        fail(&hold->failure, "bad-hook", "%s ended with code %d", hook_path, code);
    } else {
        let_go(hold, machine);
    }
    return true;
}
