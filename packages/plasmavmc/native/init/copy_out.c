#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "copy.h"
#include "tar.h"

/* One member at a time; its path grows and shrinks with the walk. */
static struct tar_member member = {.path = "x"};

static bool lost(void)
{
    complain("the host does not take the archive: %s", strerror(errno));
    return false;
}

static bool send_file(int parent, const char *name)
{
    bool short_of = false;
    struct stat info;
    int file = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0 || fstat(file, &info) < 0 || !S_ISREG(info.st_mode)) {
        complain("%s cannot be read: %s", name, file < 0 ? strerror(errno) : "it is no longer a file");
        if (file >= 0)
            close(file);
        return false;
    }
    member.size = (uint64_t)info.st_size;
    bool sent = (tar_put(STDOUT_FILENO, &member) && tar_put_data(STDOUT_FILENO, file, member.size, &short_of)) || lost();
    close(file);
    if (short_of)
        complain("%s changed while it was read", name);
    return sent && !short_of;
}

static bool send_link(int parent, const char *name)
{
    ssize_t length = readlinkat(parent, name, member.target, sizeof member.target - 1);
    if (length < 0) {
        complain("%s cannot be read: %s", name, strerror(errno));
        return false;
    }
    member.target[length] = '\0';
    return tar_put(STDOUT_FILENO, &member) || lost();
}

static bool send_entry(int parent, const char *name, int depth);

static bool send_listed(int directory, const char *name, int depth)
{
    size_t before = strlen(member.path), length = strlen(name);
    if (before + 1 + length >= sizeof member.path) {
        complain("%s lies too deep", name);
        return false;
    }
    member.path[before] = '/';
    memcpy(member.path + before + 1, name, length + 1);
    bool sent = send_entry(directory, name, depth);
    member.path[before] = '\0';
    return sent;
}

static bool send_directory(int parent, const char *name, int depth)
{
    int directory = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *listing = directory < 0 || depth >= COPY_DEPTH_MAX ? NULL : fdopendir(directory);
    if (!listing) {
        complain("%s cannot be read: %s", name, directory >= 0 ? "it lies too deep" : strerror(errno));
        if (directory >= 0)
            close(directory);
        return false;
    }
    bool sent = tar_put(STDOUT_FILENO, &member) || lost();
    for (struct dirent *entry; sent && (entry = readdir(listing));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            sent = send_listed(directory, entry->d_name, depth + 1);
    closedir(listing);
    return sent;
}

static bool send_entry(int parent, const char *name, int depth)
{
    struct stat info;
    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) < 0) {
        complain("%s cannot be read: %s", name, strerror(errno));
        return depth > 0 && errno == ENOENT; /* it went while we walked */
    }
    member.mode = info.st_mode & 07777;
    member.mtime = info.st_mtime;
    member.size = 0;
    switch (info.st_mode & S_IFMT) {
    case S_IFREG:
        member.kind = TAR_FILE;
        return send_file(parent, name);
    case S_IFLNK:
        member.kind = TAR_SYMLINK;
        return send_link(parent, name);
    case S_IFDIR:
        member.kind = TAR_DIRECTORY;
        return send_directory(parent, name, depth);
    default:
        complain("%s is left out: it is neither file, directory nor symbolic link", name);
        return true;
    }
}

/* A path that ends in a slash means what a symbolic link points to, as everywhere. */
static bool find(const struct copy *copy, int *parent, const char **name, struct failure *failure)
{
    struct stat info;
    bool follow = copy->path[strlen(copy->path) - 1] == '/';
    *parent = AT_FDCWD;
    *name = copy->path;
    if (fstatat(AT_FDCWD, copy->path, &info, AT_SYMLINK_NOFOLLOW) < 0)
        return fail(failure, "no-such-path", "%s: %s in the VM", copy->path, strerror(errno));
    if (!follow)
        return true;
    *parent = open(copy->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    *name = ".";
    return *parent >= 0 || fail(failure, "no-such-path", "%s: %s in the VM", copy->path, strerror(errno));
}

bool copy_out(const struct copy *copy, void (*begun)(void), struct failure *failure, int *code)
{
    int parent;
    const char *name;
    if (!find(copy, &parent, &name, failure))
        return false;
    begun();
    *code = !(send_entry(parent, name, 0) && (tar_put_end(STDOUT_FILENO) || lost()));
    return true;
}
