/*
 * Did the kernel kill for want of memory? Read from its own log (/dev/kmsg): the workload lives in no memory cgroup
 * of its own, as the whole VM is its bound.
 */
#ifndef SWG_OOM_H
#define SWG_OOM_H

#include <stdbool.h>
#include <sys/types.h>

/* A descriptor at the end of the kernel's log, or -1. */
int oom_open(void);

/*
 * True if, since `oom_open`, the kernel killed `pid` for want of memory; or killed any process and `code` is 137, as
 * when a shell ends with the fate of its child. Anything else is not called out of memory.
 */
bool oom_killed(int kmsg, pid_t pid, int code);

/* The pid in one record of /dev/kmsg if it tells of such a kill by the kernel itself, else -1. */
pid_t oom_victim(const char *record);

#endif
