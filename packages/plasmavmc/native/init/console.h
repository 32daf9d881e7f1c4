/*
 * The workload's own stdin, stdout and stderr, where somebody may be attached to them: an open pipe or a terminal for
 * its input, and output that waits for who reads it.
 *
 * What is heard for it travels on stream 0, as all that concerns the workload itself; the bookkeeping of input is that
 * of a command, so it is a `struct exec` without a process. Output goes the way of logs, through the ring.
 */
#ifndef SWG_CONSOLE_H
#define SWG_CONSOLE_H

#include <stdbool.h>

#include "exec.h"
#include "workload.h"

struct console {
    struct exec input;
};

void console_init(struct console *console);

/* The workload was started: take over what its stdin is fed through. */
void console_open(struct console *console, struct workload *workload);

void console_take(struct console *console, struct workload *workload, const struct frame *frame);
void console_watch(struct console *console, struct watch *watch);
void console_turn(struct console *console);

/* Give back credit for input that was written; `out` has room for a control frame. True if anything was told. */
bool console_tell(struct console *console, struct outbuf *out);

/* Another host begins with a whole window: input that still waits is dropped. */
void console_forget(struct console *console);

#endif
