/*
 * Commands that the host runs beside the workload, each on a stream of its own. A command whose output the host does
 * not take (no credit) is simply not read: it waits on its full pipe, and nobody else does.
 */
#ifndef SWG_EXEC_H
#define SWG_EXEC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config.h"
#include "outbuf.h"
#include "watch.h"
#include "workload.h"

enum {
    EXECS_MAX = 32,
    EXEC_STDIN_WINDOW = 64 * 1024,  /* bytes of stdin that the host may send ahead */
    EXEC_OUTPUT_WINDOW = 256 * 1024, /* bytes of frames that we may send ahead; the host grants more */
    HANG_UP_GRACE_MS = 2000,
};

struct exec {
    uint16_t stream;
    pid_t pid;
    bool terminal;
    bool hung_up; /* nobody listens any more; it lives until it is reaped */
    bool told_started;
    bool reaped;
    int exit_code;
    struct pipe_source status, output, errors;
    uint32_t output_credit;
    int input; /* the pty's master again (a duplicate), or the write end of a pipe */
    bool input_ready, input_eof;
    size_t input_start, input_length;
    uint32_t input_taken; /* credit not yet given back */
    int64_t kill_at;
    struct failure failure;
    uint8_t input_bytes[EXEC_STDIN_WINDOW];
};

struct execs {
    struct exec *slots[EXECS_MAX];
    unsigned turn; /* which slot is served first, so that all get their share */
};

/* A frame of the host's for one of the streams; answers go to `out`, which has room for a control frame. */
void execs_take(struct execs *execs, const struct frame *frame, const struct command *defaults, struct outbuf *out);

void execs_watch(struct execs *execs, struct watch *watch, bool may_send);
void execs_turn(struct execs *execs);

/* Move output into frames while there is room and credit; true if anything was moved. */
bool execs_send(struct execs *execs, struct outbuf *out);

bool execs_reaped(struct execs *execs, pid_t pid, int code);

/* The connection they were started on is gone. */
void execs_hang_up(struct execs *execs);

/* None is left that the host could still hear from. */
bool execs_quiet(const struct execs *execs);

/* SIGKILL to all of them: the VM ends. */
void execs_kill(struct execs *execs);

#endif
