/*
 * Holding the workload still, so that the VM can be copied, and letting it go on, there or elsewhere.
 *
 * Theory. While a guest is held, no process but init runs. A host that wants a snapshot holds the guest, takes it and lets
 * it go on; who restores a snapshot finds the guest held and first tells it the time, fresh entropy and, for a copy, who it
 * is now. So no code of the user's ever runs with the time, the randomness or the address of another life.
 *
 * A host that vanishes meanwhile must not leave a guest held for ever: it goes on by itself once no host has been attached
 * for a while. A restored guest is never in that case: its host is attached, and has said what it has to say, before its
 * first instruction runs.
 */
#ifndef SWG_HOLD_H
#define SWG_HOLD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config.h"
#include "failure.h"
#include "watch.h"

enum {
    HOLD_PATIENCE_MS = 5000,  /* until every process stands still; one in the midst of a disk's write may take a while */
    HOLD_ALONE_MS = 10000,    /* without a host */
    HOLD_HOOK_MS = 5000,      /* for the image's own hook */
};

struct machine;

struct hold {
    enum { HOLD_NONE, HOLD_BEGUN, HOLD_HELD, HOLD_HOOK } state;
    bool tell_held, tell_free; /* the host waits for this word */
    bool wanting;              /* it could not become who it is to be (or its hook failed), and stays held for good */
    struct failure failure;    /* what goes with that word; no code: all is well */
    int64_t give_up, alone_until;
    pid_t hook;
};

void hold_init(struct hold *hold);

/* Begin; `hold_turn` sees its end. */
void hold_begin(struct hold *hold, const struct machine *machine);

/* Refuse to: there is nothing to hold. */
void hold_refuse(struct hold *hold);

/* Become who the card says, run the image's hook where this is a restored guest, and let go. */
void hold_end(struct hold *hold, const struct machine *machine, const struct identity_card *card,
              const struct command *command);

/* A new host has come: it waits for no word of ours, and what an older one began is over. */
void hold_new_host(struct hold *hold, const struct machine *machine);

void hold_watch(const struct hold *hold, struct watch *watch);
void hold_turn(struct hold *hold, const struct machine *machine, bool host_away);

/* True if the child was the hook. */
bool hold_reaped(struct hold *hold, const struct machine *machine, pid_t pid, int code);

#endif
