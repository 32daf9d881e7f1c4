#include "group.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failure.h"
#include "files.h"
#include "spawn.h"

static int freezer = -1, events = -1;

static bool open_files(int root)
{
    if (mkdirat(root, "workload", 0755) < 0 && errno != EEXIST)
        return false;
    freezer = openat(root, "workload/cgroup.freeze", O_WRONLY | O_CLOEXEC);
    events = openat(root, "workload/cgroup.events", O_RDONLY | O_CLOEXEC);
    int members = openat(root, "workload/cgroup.procs", O_WRONLY | O_CLOEXEC);
    spawn_joins(members);
    return freezer >= 0 && events >= 0 && members >= 0;
}

/* The mount is gone from the tree at once; open files keep it. */
void group_make(void)
{
    const char *place = "/.group";
    make_directories(place, 0700);
    bool made = mount("cgroup2", place, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0;
    int root = made ? open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (root < 0 || !open_files(root))
        say("cannot group processes: %s", strerror(errno));
    if (root >= 0)
        close(root);
    if (made)
        umount2(place, MNT_DETACH);
    rmdir(place);
}

bool group_hold(bool on)
{
    return freezer >= 0 && pwrite(freezer, on ? "1" : "0", 1, 0) == 1;
}

bool group_held(void)
{
    char text[128];
    ssize_t length = events < 0 ? -1 : pread(events, text, sizeof text - 1, 0);
    if (length < 0)
        return false;
    text[length] = '\0';
    return strstr(text, "frozen 1") != NULL;
}
