#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "copy.h"
#include "tar.h"

enum { KEPT_MODE = 01777 };

/* Where the tree goes: as `top` in a directory, or (top is empty) into that directory itself. */
struct place {
    int directory;
    char top[COPY_NAME_MAX];
};

static bool into_parent(const struct copy *copy, struct place *place, struct failure *failure)
{
    char parent[COPY_PATH_MAX];
    snprintf(parent, sizeof parent, "%s", copy->path);
    char *slash = strrchr(parent, '/');
    const char *base = slash + 1;
    if (!*base)
        return fail(failure, "no-such-directory", "%s is not a directory in the VM", copy->path);
    if (!strcmp(base, ".") || !strcmp(base, "..") || strlen(base) >= sizeof place->top)
        return fail(failure, "bad-path", "%s is no name for what is copied", copy->path);
    snprintf(place->top, sizeof place->top, "%s", base);
    slash[slash == parent] = '\0';
    place->directory = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (place->directory < 0)
        return fail(failure, "no-such-directory", "%s: %s in the VM", parent, strerror(errno));
    return true;
}

static bool find_place(const struct copy *copy, struct place *place, struct failure *failure)
{
    *place = (struct place){.directory = open(copy->path, O_PATH | O_DIRECTORY | O_CLOEXEC)};
    if (place->directory < 0)
        return into_parent(copy, place, failure);
    if (!copy->contents)
        memcpy(place->top, copy->name, sizeof place->top);
    return true;
}

/* Each component is a name; then the kernel holds the rest of the promise. */
static bool is_sound(const char *path)
{
    for (const char *at = path;; at++) {
        size_t length = strcspn(at, "/");
        if (!length || (length <= 2 && !strncmp(at, "..", length)))
            return false;
        at += length;
        if (!*at)
            return true;
    }
}

static void strip_slashes(char *path)
{
    for (size_t length = strlen(path); length > 1 && path[length - 1] == '/'; length--)
        path[length - 1] = '\0';
}

/* The member's path in the place; empty for the place's directory itself. */
static bool path_in(const struct place *place, const char *path, char *into, size_t room)
{
    const char *rest = path + strcspn(path, "/");
    rest += *rest == '/';
    int length = snprintf(into, room, "%s%s%s", place->top, *place->top && *rest ? "/" : "", rest);
    return length >= 0 && (size_t)length < room;
}

/* Open the parent of a path and point to its last component. */
static int open_parent(int directory, char *path, const char **base)
{
    char *slash = strrchr(path, '/');
    *base = slash ? slash + 1 : path;
    if (slash)
        *slash = '\0';
    return open_beneath(directory, slash ? path : ".");
}

static bool put_directory(int parent, const char *name, const struct tar_member *member)
{
    struct stat info;
    if (mkdirat(parent, name, (member->mode & KEPT_MODE) | 0700) == 0)
        return true;
    if (errno != EEXIST)
        return false;
    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode))
        return true; /* as it is */
    errno = ENOTDIR;
    return false;
}

/* What has the name already goes first; a directory stays and is an error. */
static bool put_file(int parent, const char *name, const struct tar_member *member)
{
    if (unlinkat(parent, name, 0) < 0 && errno != ENOENT)
        return false;
    int file = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, member->mode & KEPT_MODE);
    if (file < 0)
        return false;
    const struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_sec = member->mtime}};
    bool whole = tar_take_data(STDIN_FILENO, member->size, file);
    int error = errno;
    futimens(file, times);
    whole = close(file) == 0 && whole;
    errno = error;
    return whole;
}

static bool put_symlink(int parent, const char *name, const struct tar_member *member)
{
    if (unlinkat(parent, name, 0) < 0 && errno != ENOENT)
        return false;
    return symlinkat(member->target, parent, name) == 0;
}

static bool put_member(int parent, const char *name, const struct tar_member *member)
{
    switch (member->kind) {
    case TAR_DIRECTORY:
        return put_directory(parent, name, member);
    case TAR_FILE:
        return put_file(parent, name, member);
    case TAR_SYMLINK:
        return put_symlink(parent, name, member);
    default:
        errno = EOPNOTSUPP;
        return false;
    }
}

static bool take_member(const struct place *place, struct tar_member *member)
{
    static char path[COPY_PATH_MAX + COPY_NAME_MAX];
    const char *base;
    strip_slashes(member->path);
    if (!is_sound(member->path) || !path_in(place, member->path, path, sizeof path)) {
        complain("the archive names %s, which is no path of what is copied", member->path);
        return false;
    }
    if (!*path)
        return member->kind == TAR_DIRECTORY;
    int parent = open_parent(place->directory, path, &base);
    errno = parent < 0 ? errno : 0;
    if (parent >= 0 && put_member(parent, base, member)) {
        close(parent);
        return true;
    }
    complain("%s cannot be written in the VM: %s", member->path + strcspn(member->path, "/"),
             errno ? strerror(errno) : "the archive is cut short");
    return false;
}

bool copy_in(const struct copy *copy, void (*begun)(void), struct failure *failure, int *code)
{
    static struct tar_member member;
    struct place place;
    if (!find_place(copy, &place, failure))
        return false;
    begun();
    for (;;) {
        enum tar_event event = tar_next(STDIN_FILENO, &member);
        if (event == TAR_BAD)
            complain("the archive is cut short or unsound");
        *code = event != TAR_END;
        if (event != TAR_MEMBER || !take_member(&place, &member))
            break;
    }
    return true;
}
