/*
 * Files copied into and out of the VM, as a tar stream of one tree (tar.h). An image need not have any program for it:
 * a child of init does it, without exec, with a pipe as stdin or stdout; so the loop of init never waits for a disk, and
 * credit, hang-up and the end are those of a command.
 *
 * Theory of safety. The path that was asked for is resolved as any path of the guest. Beneath it nothing is: each
 * directory is opened with openat2(2) and RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS, whatever the archive or a process of
 * the guest puts there. Members are files, directories and symbolic links; anything else is refused coming in, and left
 * out with a word on stderr going out. What comes in belongs to root, without set-user-id bits, as nobody here knows the
 * sender's users.
 */
#ifndef SWG_COPY_H
#define SWG_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "failure.h"
#include "spawn.h"

enum { COPY_PATH_MAX = 4096, COPY_NAME_MAX = 256, COPY_DEPTH_MAX = 128 };

struct copy {
    bool in;
    char path[COPY_PATH_MAX];
    char name[COPY_NAME_MAX]; /* what comes in is called so where `path` is a directory */
    bool contents;            /* what comes in is not the directory but what is in it */
};

bool copy_parse(struct copy *copy, bool in, const uint8_t *raw, size_t length, struct failure *failure);

/* Start it with these descriptors as stdin, stdout and stderr; `spawned` as by spawn(). */
bool copy_spawn(const struct copy *copy, const struct spawn_io *io, struct spawned *spawned, struct failure *failure);

/*
 * In the child. Each prepares (a refusal is a failure), calls `begun`, and copies; then its exit code, with what went
 * wrong on stderr.
 */
bool copy_in(const struct copy *copy, void (*begun)(void), struct failure *failure, int *code);
bool copy_out(const struct copy *copy, void (*begun)(void), struct failure *failure, int *code);

/* A directory beneath another, reached over no symbolic link. -1 with errno. */
int open_beneath(int directory, const char *path);

/* Complain on stderr, a line. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
