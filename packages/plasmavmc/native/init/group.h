/*
 * The cgroup that the workload and all commands live in, so that they can be held still at once (cgroup-v2.rst, cgroup.freeze).
 *
 * It is mounted out of sight, and who lives in it sees it as the root of a namespace of his own: what mounts cgroups in the
 * guest (systemd, a container engine) builds below it, and is held with it.
 */
#ifndef SWG_GROUP_H
#define SWG_GROUP_H

#include <stdbool.h>

/* Make it, once, and have every process join that is spawned from now on. A kernel without cgroups goes without. */
void group_make(void);

/* Begin to hold, or let go. False where there is no group. */
bool group_hold(bool on);

/* Everything in it stands still. */
bool group_held(void);

#endif
