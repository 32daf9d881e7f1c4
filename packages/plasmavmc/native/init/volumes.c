#include "volumes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "clock.h"
#include "files.h"
#include "root.h"
#include "users.h"

/* linux/fs.h and fs/ext4/ext4.h; musl has no kernel headers of its own, and takes a request as an int. */
#define BLOCK_DEVICE_SIZE ((int)_IOR(0x12, 114, size_t))
#define FREEZE ((int)_IOWR('X', 119, int))
#define THAW ((int)_IOWR('X', 120, int))
#define RESIZE_EXT4 _IOW('f', 16, uint64_t)

enum { DEVICE_MAX = 16, GROWTH_PATIENCE_MS = 5000, UNMOUNT_PATIENCE_MS = 3000 };

struct mounted {
    unsigned disk;
    bool read_only;
    int root; /* its root directory: what is asked of it is asked by this, whatever becomes of its path */
    const char *place; /* of the configuration, which stays */
};

static struct mounted mounted[VOLUMES_MAX];
static size_t mounted_count;

static void device_of(unsigned disk, char *into)
{
    snprintf(into, DEVICE_MAX, "/dev/vd%c", (char)('a' + disk));
}

static bool is_root(int directory)
{
    struct stat root, found;
    return fstat(directory, &found) < 0 || stat("/", &root) < 0 ||
           (root.st_dev == found.st_dev && root.st_ino == found.st_ino);
}

/* The directory to mount on, made where it is missing. No process of the image's runs yet. */
static int open_place(const char *path, struct failure *failure)
{
    make_directories(path, 0755);
    int place = open_place_at(AT_FDCWD, path, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (place < 0) {
        fail(failure, "bad-volume", "%.200s is no directory, and cannot be made one: %s", path, strerror(errno));
    } else if (is_root(place)) {
        close(place);
        place = -1;
        fail(failure, "bad-volume", "%.200s leads to the root", path);
    }
    return place;
}

static bool device_size(unsigned disk, uint64_t *size)
{
    char device[DEVICE_MAX];
    device_of(disk, device);
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    bool told = fd >= 0 && ioctl(fd, BLOCK_DEVICE_SIZE, size) == 0;
    if (fd >= 0)
        close(fd);
    return told;
}

/* To the size of its disk; what is as large already is left alone. */
static bool grow(const struct mounted *volume, struct failure *failure)
{
    struct statfs info;
    uint64_t size, blocks;
    bool grown = device_size(volume->disk, &size) && fstatfs(volume->root, &info) == 0;
    if (grown) {
        blocks = size / (uint64_t)info.f_bsize;
        grown = ioctl(volume->root, RESIZE_EXT4, &blocks) == 0;
    }
    return grown || fail(failure, "bad-volume", "cannot grow the volume on %.200s: %s", volume->place, strerror(errno));
}

/* It has what its file system was born with, and nothing else. */
static bool is_new(int root)
{
    size_t others = 0, born_with = 0;
    int again = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = again < 0 ? NULL : fdopendir(again);
    if (!entries)
        return false;
    for (struct dirent *entry; (entry = readdir(entries));) {
        if (!strcmp(entry->d_name, "lost+found"))
            born_with++;
        else if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            others++;
    }
    closedir(entries);
    return born_with && !others;
}

/* A new volume belongs to the workload's user, and is empty: databases refuse a directory with anything in it. */
static bool hand_over(const struct mounted *volume, const struct command *command, struct failure *failure)
{
    struct identity identity;
    if (!is_new(volume->root))
        return true;
    if (!identity_find("/etc", command->user ? command->user : "", &identity, failure))
        return false;
    bool given = fchown(volume->root, identity.uid, identity.gid) == 0 &&
                 unlinkat(volume->root, "lost+found", AT_REMOVEDIR) == 0;
    return given || fail(failure, "bad-volume", "cannot prepare %.200s: %s", volume->place, strerror(errno));
}

static bool mount_on(const char *device, int place, bool read_only)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", place);
    return mount(device, path, "ext4", MS_NOATIME | (read_only ? MS_RDONLY : 0), NULL) == 0;
}

static bool mount_one(const struct volume *wanted, const struct command *command, struct failure *failure)
{
    struct mounted *volume = &mounted[mounted_count];
    char device[DEVICE_MAX];
    device_of(wanted->disk, device);
    if (!disk_appears(device))
        return fail(failure, "no-volume-disk", "the disk for %.200s (%s) did not appear", wanted->place, device);
    int place = open_place(wanted->place, failure);
    if (place < 0)
        return false;
    bool there = mount_on(device, place, wanted->read_only);
    int error = errno;
    close(place);
    if (!there)
        return fail(failure, "bad-volume", "cannot mount the volume on %.200s: %s%s", wanted->place, strerror(error),
                    wanted->read_only ? " (one that was not unmounted must be mounted for writing once)" : "");
    *volume = (struct mounted){.disk = wanted->disk, .read_only = wanted->read_only, .place = wanted->place};
    volume->root = open(wanted->place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (volume->root < 0)
        return fail(failure, "bad-volume", "cannot open %.200s: %s", wanted->place, strerror(errno));
    mounted_count++;
    return wanted->read_only || (grow(volume, failure) && hand_over(volume, command, failure));
}

bool volumes_mount(const struct config *config, struct failure *failure)
{
    for (size_t i = 0; i < config->volume_count; i++)
        if (!mount_one(&config->volumes[i], &config->command, failure))
            return false;
    return true;
}

static struct mounted *find(unsigned disk)
{
    for (size_t i = 0; i < mounted_count; i++)
        if (mounted[i].disk == disk)
            return &mounted[i];
    return NULL;
}

/* The device tells its driver, which may hear it after the host's word. */
static bool await_size(unsigned disk, uint64_t size, struct failure *failure)
{
    uint64_t found = 0;
    for (int64_t give_up = now_ms() + GROWTH_PATIENCE_MS; now_ms() < give_up; usleep(1000))
        if (device_size(disk, &found) && found >= size)
            return true;
    return fail(failure, "bad-volume", "the disk has %llu bytes and not %llu", (unsigned long long)found,
                (unsigned long long)size);
}

static bool freeze(const struct mounted *volume, struct failure *failure)
{
    return volume->read_only || ioctl(volume->root, FREEZE, 0) == 0 ||
           fail(failure, "not-frozen", "cannot freeze %.200s: %s", volume->place, strerror(errno));
}

static bool thaw(const struct mounted *volume, struct failure *failure)
{
    return volume->read_only || ioctl(volume->root, THAW, 0) == 0 ||
           fail(failure, "not-frozen", "%.200s is not frozen any more", volume->place);
}

bool volumes_order(enum order order, unsigned disk, uint64_t size, struct failure *failure)
{
    const struct mounted *volume = find(disk);
    if (!volume)
        return fail(failure, "no-volume", "there is no volume on disk %u", disk);
    switch (order) {
    case ORDER_FREEZE:
        return freeze(volume, failure);
    case ORDER_THAW:
        return thaw(volume, failure);
    case ORDER_GROW:
        return volume->read_only || (await_size(disk, size, failure) && grow(volume, failure));
    }
    return fail(failure, "no-order", "there is no order %u", (unsigned)order);
}

/* A disk that nothing has mounted any more can be had for oneself. */
static void await_unmounted(unsigned disk)
{
    char device[DEVICE_MAX];
    device_of(disk, device);
    for (int64_t give_up = now_ms() + UNMOUNT_PATIENCE_MS; now_ms() < give_up; usleep(1000)) {
        int fd = open(device, O_RDONLY | O_EXCL | O_CLOEXEC);
        if (fd >= 0)
            close(fd);
        if (fd >= 0 || errno != EBUSY)
            return;
    }
    say("%s is still in use", device);
}

/* Detached at once, and gone with the last of the killed, which may still be on their way out. */
void volumes_finish(void)
{
    char path[64];
    for (size_t i = mounted_count; i-- > 0;) {
        struct mounted *volume = &mounted[i];
        ioctl(volume->root, THAW, 0);
        syncfs(volume->root);
        snprintf(path, sizeof path, "/proc/self/fd/%d", volume->root);
        if (umount2(path, MNT_DETACH) < 0 && umount2(volume->place, MNT_DETACH) < 0)
            say("cannot unmount %s: %s", volume->place, strerror(errno));
        close(volume->root);
        await_unmounted(volume->disk);
    }
    mounted_count = 0;
}
