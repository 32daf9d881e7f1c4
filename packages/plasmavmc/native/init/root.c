#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "files.h"

enum { DISK_PATIENCE_MS = 5000 };

static const char image_disk[] = "/dev/vda", layer_disk[] = "/dev/vdb";

static bool mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
    make_directories(target, 0755);
    return mount(source, target, type, flags, options) == 0;
}

/* 0, 1 and 2 must be taken, or a descriptor of ours would be a child's stdin. */
static void fill_stdio(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO)
        close(fd);
}

void root_mount_early(void)
{
    umask(022);
    mount_at("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_at("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_at("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    fill_stdio();
}

bool disk_appears(const char *path)
{
    int64_t give_up = now_ms() + DISK_PATIENCE_MS;
    while (access(path, F_OK) < 0) {
        if (now_ms() >= give_up)
            return false;
        usleep(1000); /* devtmpfs announces nothing */
    }
    return true;
}

static bool mount_image(struct failure *failure)
{
    if (!disk_appears(image_disk))
        return fail(failure, "no-root-disk", "the disk with the image (%s) did not appear", image_disk);
    if (!mount_at(image_disk, "/image", "squashfs", MS_RDONLY | MS_NOATIME, NULL))
        return fail(failure, "bad-root-disk", "cannot mount the image: %s", strerror(errno));
    return true;
}

/* A VM without a disk for its layer keeps it in memory. */
static bool mount_layer(struct failure *failure)
{
    bool disk = access(layer_disk, F_OK) == 0;
    bool mounted = disk ? mount_at(layer_disk, "/layer", "ext4", MS_NOATIME, NULL)
                        : mount_at("tmpfs", "/layer", "tmpfs", MS_NOATIME, "mode=0755");
    if (!mounted)
        return fail(failure, "bad-root-disk", "cannot mount the writable layer: %s", strerror(errno));
    make_directories("/layer/upper", 0755);
    make_directories("/layer/work", 0755);
    return true;
}

static bool mount_both(struct failure *failure)
{
    const char *options = "lowerdir=/image,upperdir=/layer/upper,workdir=/layer/work,volatile";
    if (!mount_at("overlay", "/root", "overlay", MS_NOATIME, options))
        return fail(failure, "bad-root-disk", "cannot join image and writable layer: %s", strerror(errno));
    return true;
}

/* switch_root(8): what is mounted moves over, the initramfs' program is given back, the new tree becomes /. */
static bool enter_root(struct failure *failure)
{
    const char *moved[] = {"/dev", "/proc", "/sys"};
    const char *targets[] = {"/root/dev", "/root/proc", "/root/sys"};
    bool entered = true;
    for (int i = 0; i < 3; i++) {
        make_directories(targets[i], 0755);
        entered = entered && mount(moved[i], targets[i], NULL, MS_MOVE, NULL) == 0;
    }
    unlink("/init");
    entered = entered && chdir("/root") == 0 && mount(".", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 &&
              chdir("/") == 0;
    return entered || fail(failure, "bad-root-disk", "cannot make the image the root: %s", strerror(errno));
}

static void link_to_own_descriptors(void)
{
    const char *links[][2] = {{"/proc/self/fd", "/dev/fd"},
                              {"/proc/self/fd/0", "/dev/stdin"},
                              {"/proc/self/fd/1", "/dev/stdout"},
                              {"/proc/self/fd/2", "/dev/stderr"}};
    for (int i = 0; i < 4; i++)
        if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
            say("cannot make %s: %s", links[i][1], strerror(errno));
}

/* What every Linux program may expect. What the image itself has in /run and /tmp is never hidden. */
static void mount_usual(void)
{
    mount_at("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    mount_at("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_at("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    if (is_empty("/run"))
        mount_at("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    make_directories("/tmp", 01777);
    link_to_own_descriptors();
}

bool root_switch(struct failure *failure)
{
    if (!mount_image(failure) || !mount_layer(failure) || !mount_both(failure) || !enter_root(failure))
        return false;
    mount_usual();
    return true;
}
