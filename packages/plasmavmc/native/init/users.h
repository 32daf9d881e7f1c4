/*
 * Who a process is, as an image says it: `user`, `uid`, `user:group`, `uid:gid`, with names looked up in the
 * image's own files (passwd(5), group(5)), as container engines do:
 * a number that no line knows is taken as it is; a given group replaces the supplementary ones.
 */
#ifndef SWG_USERS_H
#define SWG_USERS_H

#include <stddef.h>
#include <sys/types.h>

#include "failure.h"

enum { GROUPS_MAX = 256, HOME_MAX = 256 };

struct identity {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    size_t group_count;
    char home[HOME_MAX];
};

/* `etc` is the directory of passwd and group. Fails with `no-such-user`. An empty text is root. */
bool identity_find(const char *etc, const char *text, struct identity *identity, struct failure *failure);

#endif
