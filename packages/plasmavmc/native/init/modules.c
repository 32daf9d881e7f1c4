#include "modules.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "failure.h"

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void load(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        say("cannot load %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

void modules_load(const char *directory)
{
    struct dirent **entries;
    int count = scandir(directory, &entries, is_visible, alphasort);
    for (int i = 0; i < count; i++) {
        char path[320];
        snprintf(path, sizeof path, "%.50s/%.255s", directory, entries[i]->d_name);
        load(path);
        unlink(path);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
}
