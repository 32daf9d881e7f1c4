#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void make_parents(const char *path)
{
    char part[PATH_MAX];
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
        return;
    for (char *slash = part + 1; *slash; slash++) {
        if (*slash != '/')
            continue;
        *slash = '\0';
        mkdir(part, 0755);
        *slash = '/';
    }
}

void make_directories(const char *path, mode_t mode)
{
    make_parents(path);
    if (mkdir(path, mode) == 0)
        chmod(path, mode); /* the umask has no say */
}

/* linux/openat2.h, which the C library does not have. */
struct open_how {
    uint64_t flags, mode, resolve;
};

int open_place_at(int directory, const char *path, uint64_t resolve)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = resolve};
    return (int)syscall(SYS_openat2, directory, path, &how, sizeof how);
}

bool is_empty(const char *directory)
{
    bool empty = true;
    DIR *entries = opendir(directory);
    if (!entries)
        return errno == ENOENT;
    for (struct dirent *entry; empty && (entry = readdir(entries));)
        empty = !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..");
    closedir(entries);
    return empty;
}

bool is_missing_or_empty(const char *path)
{
    struct stat info;
    return stat(path, &info) < 0 || info.st_size == 0;
}

static bool write_all(int fd, const char *content, size_t length)
{
    while (length) {
        ssize_t written = write(fd, content, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        content += written;
        length -= (size_t)written;
    }
    return true;
}

static bool write_and_close(int fd, const void *content, size_t length)
{
    bool written = write_all(fd, content, length);
    int error = errno;
    close(fd);
    errno = error;
    return written;
}

bool write_file(const char *path, const void *content, size_t length, mode_t mode)
{
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0)
        return false;
    fchmod(fd, mode);
    return write_and_close(fd, content, length);
}

bool read_line(const char *path, char *into, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, into, size - 1);
    if (fd >= 0)
        close(fd);
    if (length <= 0)
        return false;
    into[length] = '\0';
    into[strcspn(into, "\n")] = '\0';
    return true;
}

bool write_setting(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write_and_close(fd, value, strlen(value));
}
