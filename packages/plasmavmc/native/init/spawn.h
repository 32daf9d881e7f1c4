/*
 * Starting a process of the guest: a session of its own, nothing of init's inherited, its user, its directory,
 * its PATH. Init never waits for it: how the start went is read later from a pipe that exec closes.
 */
#ifndef SWG_SPAWN_H
#define SWG_SPAWN_H

#include <stdbool.h>
#include <sys/types.h>

#include "config.h"
#include "failure.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* The descriptors that become 0, 1 and 2; with `terminal` they are one pty's, which becomes the controlling one. */
struct spawn_io {
    int in, out, error;
    bool terminal;
    bool apart; /* it does not join the others, and runs while they are held */
};

struct spawned {
    pid_t pid;
    int status; /* read end; ready when the start is decided */
};

/* From now on a process joins a group first, by writing to this descriptor; -1: none. */
void spawn_joins(int members);

/* For a child that does not exec: join it. Within the group it sees nothing above. */
bool spawn_join_group(struct failure *failure);

bool spawn(const struct command *command, const struct spawn_io *io, struct spawned *spawned, struct failure *failure);

/* Read and close `status`. True: the program runs. False: it does not, and why. */
bool spawn_started(int *status, struct failure *failure);

/* A pipe whose read (or write) end is ours and does not block. */
bool pipe_for_reading(int *ours, int *theirs);
bool pipe_for_writing(int *ours, int *theirs);

#endif
