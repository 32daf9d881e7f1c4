#include "devices.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "failure.h"
#include "files.h"

enum { DEVICES_MAX = 64, NAME_MAX_BYTES = 32 };

struct binding {
    const char *driver;
    char device[NAME_MAX_BYTES];
};

static const char *const drivers[] = {"virtio_blk", "virtio_net"};
static struct binding taken[DEVICES_MAX];
static size_t taken_count;

static bool tell_driver(const struct binding *binding, const char *what)
{
    char path[128];
    snprintf(path, sizeof path, "/sys/bus/virtio/drivers/%s/%s", binding->driver, what);
    bool told = write_setting(path, binding->device);
    if (!told)
        say("cannot %s %s: %s", what, binding->device, strerror(errno));
    return told;
}

static int is_device(const struct dirent *entry)
{
    return !strncmp(entry->d_name, "virtio", 6) && strlen(entry->d_name) < NAME_MAX_BYTES;
}

static bool take_all_of(const char *driver)
{
    char path[128];
    struct dirent **entries;
    bool all = true;
    snprintf(path, sizeof path, "/sys/bus/virtio/drivers/%s", driver);
    int count = scandir(path, &entries, is_device, versionsort);
    for (int i = 0; i < count; i++) {
        struct binding *binding = &taken[taken_count];
        if (all && (all = taken_count < DEVICES_MAX)) {
            binding->driver = driver;
            strcpy(binding->device, entries[i]->d_name);
            if ((all = tell_driver(binding, "unbind")))
                taken_count++;
        }
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
    return all; /* a guest without the driver has no such device */
}

static bool give_back(void)
{
    bool all = true;
    for (size_t i = 0; i < taken_count; i++)
        all = tell_driver(&taken[i], "bind") && all;
    taken_count = 0;
    return all;
}

static bool take_all(void)
{
    for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++)
        if (!take_all_of(drivers[i]))
            return false;
    return true;
}

bool devices_hold(bool on)
{
    if (!on)
        return give_back();
    if (take_all())
        return true;
    give_back();
    return false;
}
