#include "virtio.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "files.h"

static const char devices[] = "/sys/bus/virtio/devices";

bool virtio_has(enum virtio_kind kind)
{
    bool found = false;
    DIR *directory = opendir(devices);
    if (!directory)
        return false;
    for (struct dirent *entry; !found && (entry = readdir(directory));) {
        char path[320], number[16];
        snprintf(path, sizeof path, "%s/%.200s/device", devices, entry->d_name);
        found = entry->d_name[0] != '.' && read_line(path, number, sizeof number) &&
                strtoul(number, NULL, 16) == (unsigned long)kind;
    }
    closedir(directory);
    return found;
}
