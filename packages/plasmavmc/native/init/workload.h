/*
 * The one process that the VM exists for. Its output is always read, at once, into a bounded ring: it never waits for
 * us or for the host.
 */
#ifndef SWG_WORKLOAD_H
#define SWG_WORKLOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config.h"
#include "failure.h"
#include "ring.h"
#include "watch.h"

enum { STREAM_STDOUT = 1, STREAM_STDERR = 2 };

struct pipe_source {
    int fd;
    bool ready;
};

enum workload_state { WORKLOAD_NONE, WORKLOAD_STARTING, WORKLOAD_RUNNING, WORKLOAD_FAILED, WORKLOAD_EXITED };

struct workload {
    enum workload_state state;
    pid_t pid;
    int exit_code;
    bool oom;
    bool reaped;
    struct failure failure;
    struct pipe_source status, output, errors;
    int input;     /* what feeds its stdin, where that is open: the pty's master again, or the write end of a pipe */
    bool terminal; /* output is a pty's master, and errors is nothing */
    bool attached; /* its output waits for who reads it */
    bool may_hold_back;
    bool holds_back; /* nothing is read now: the ring is full of what the host has not acknowledged */
    int kmsg;
    int64_t kill_at;
    struct ring ring;
};

void workload_init(struct workload *workload);
void workload_start(struct workload *workload, const struct command *command);

/* Says for this turn whether its output may wait; only where it was asked for, and while there is somebody to wait for. */
void workload_hold_back(struct workload *workload, bool possible);

/* It cannot be started at all; the failure says why. */
void workload_refuse(struct workload *workload, const struct failure *failure);

void workload_watch(struct workload *workload, struct watch *watch);
void workload_turn(struct workload *workload);

/* A turn left output unread that is there already. */
bool workload_has_more(const struct workload *workload);

/* Nobody can write output any more, and all was read. */
bool workload_silent(const struct workload *workload);

/* Child `pid` ended: true if it was the workload. `code` is 128 + signal for a death by signal. */
bool workload_reaped(struct workload *workload, pid_t pid, int code);

/* The signal now, SIGKILL after `grace_ms`. */
void workload_stop(struct workload *workload, int signal_number, uint32_t grace_ms);

/* FAILED or EXITED: the VM's life is over. */
bool workload_over(const struct workload *workload);

#endif
