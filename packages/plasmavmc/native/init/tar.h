/*
 * A tar stream of one tree, read and written with blocking descriptors: ustar, with pax records (POSIX.1-2001) for long
 * paths, long targets of links and large files. Names are relative; the first component is the tree's own name.
 */
#ifndef SWG_TAR_H
#define SWG_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TAR_BLOCK = 512, TAR_PATH_MAX = 4096, TAR_EXTENDED_MAX = 16 * 1024 };

enum tar_kind { TAR_FILE = '0', TAR_SYMLINK = '2', TAR_DIRECTORY = '5' };

struct tar_member {
    char kind; /* of enum tar_kind, or another flag of an archive */
    char path[TAR_PATH_MAX];
    char target[TAR_PATH_MAX]; /* of a symbolic link */
    uint32_t mode;
    int64_t mtime;
    uint64_t size; /* of a file's data, which follows */
};

enum tar_event { TAR_MEMBER, TAR_END, TAR_BAD };

/* The next member of `fd`. TAR_BAD: the archive is cut short or unsound. Its data must be taken before the next. */
enum tar_event tar_next(int fd, struct tar_member *member);

/* Copy a member's data from `fd`; to nowhere with -1. False with errno; 0 for an archive that is cut short. */
bool tar_take_data(int fd, uint64_t size, int into);

/* Write a member's header, its data from a file (what it lacks is zeros), and the end. False with errno. */
bool tar_put(int fd, const struct tar_member *member);
bool tar_put_data(int fd, int from, uint64_t size, bool *short_of);
bool tar_put_end(int fd);

#endif
