/* Pid 1 of a microVM: wake up, hear what to run, run it until it ends, tell how it ended, switch off. */

#include <signal.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <unistd.h>

#include "devices.h"
#include "failure.h"
#include "files.h"
#include "group.h"
#include "guest.h"
#include "modules.h"
#include "port.h"
#include "prepare.h"
#include "root.h"

enum { PORT_PATIENCE_MS = 10000 };

static const char channel[] = "ctl";

static void end_all(void)
{
    kill(-1, SIGKILL); /* pid 1 itself is spared by the kernel */
}

/*
 * Held before its configuration a guest has nothing of anybody's in it, and can become anybody's. It has no processes to
 * hold then, but devices.
 */
static bool configured;

static bool prepare(const struct config *config, struct failure *failure)
{
    configured = true;
    return prepare_guest(config, failure);
}

static bool hold(bool on)
{
    return configured ? group_hold(on) : devices_hold(on);
}

static bool held(void)
{
    return !configured || group_held();
}

/* What is only cached need not be in a copy of the memory. */
static void settle(void)
{
    sync();
    write_setting("/proc/sys/vm/drop_caches", "3");
}

/* Under `reboot=t` and QEMU's -no-reboot a reset is the quickest way off. */
static _Noreturn void switch_off(void)
{
    sync();
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

int main(void)
{
    static struct guest guest;
    static const struct machine machine = {.prepare = prepare,
                                           .end_all = end_all,
                                           .hold = hold,
                                           .held = held,
                                           .settle = settle,
                                           .renew = renew_guest};
    if (getpid() != 1) {
        say("this is the first process of a microVM and nothing else");
        return EXIT_FAILURE;
    }
    root_mount_early();
    modules_load("/mods");
    int port = port_open(channel, PORT_PATIENCE_MS);
    if (port < 0 || !guest_init(&guest, &machine, port))
        say("there is no port named %s to the host", channel);
    else
        guest_run(&guest);
    switch_off();
}
