/* Pid 1 of a microVM: wake up, hear what to run, run it until it ends, tell how it ended, switch off. */

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
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
#include "virtio.h"
#include "volumes.h"
#include "vsock.h"

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

/* A guest that cannot use what it finds in the places of its devices must not say that it goes on. */
static bool renew(const struct identity_card *card, struct failure *failure)
{
    if (!configured && !devices_hold(false))
        return fail(failure, "bad-device", "a disk or an interface could not be taken again");
    return renew_guest(card, failure);
}

/* What is only cached need not be in a copy of the memory. */
static void settle(void)
{
    sync();
    write_setting("/proc/sys/vm/drop_caches", "3");
}

/* Not by trying: a serial port's name is told late, and by a message of the host's. */
static int open_channel(void)
{
    bool by_vsock = virtio_has(VIRTIO_VSOCK) && !virtio_has(VIRTIO_CONSOLE);
    int fd = by_vsock ? vsock_listen(VSOCK_PORT) : port_open(channel, PORT_PATIENCE_MS);
    if (fd < 0)
        say("there is no way to the host by %s: %s", by_vsock ? "vsock" : "serial port", strerror(errno));
    return fd;
}

/* A reset is the quickest way off: under `reboot=t` and QEMU's -no-reboot, or under `reboot=k` on Firecracker. */
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
                                           .renew = renew,
                                           .volume = volumes_order,
                                           .finish = volumes_finish};
    if (getpid() != 1) {
        say("this is the first process of a microVM and nothing else");
        return EXIT_FAILURE;
    }
    root_mount_early();
    modules_load("/mods");
    int port = open_channel();
    if (port >= 0 && guest_init(&guest, &machine, port))
        guest_run(&guest);
    switch_off();
}
