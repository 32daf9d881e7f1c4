/*
 * The guest as a whole: what it holds, the conversation with the host, and the loop that drives both until the
 * workload is over and told.
 */
#ifndef SWG_GUEST_H
#define SWG_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"
#include "console.h"
#include "exec.h"
#include "frame.h"
#include "hold.h"
#include "orders.h"
#include "outbuf.h"
#include "port.h"
#include "workload.h"

enum {
    PROTOCOL_VERSION = 1,
    LOG_WINDOW = 256 * 1024, /* bytes of output frames sent ahead of the host's grants */
    INPUT_SIZE = 16 * 1024,
    /*
     * How long the end waits for the host to have heard it. With a host attached the answer takes well under a
     * millisecond, unless what the workload wrote last has to go before it and the host is slow to take that; without
     * one, a platform that just restarts still gets the last lines and the exit code.
     */
    END_ATTACHED_MS = 5000,
    END_AWAY_MS = 2000,
    LAST_WORD_MS = 500, /* so long before that, the end is told whatever else is unsaid */
};

/* What init does to the machine around it; a test on an ordinary host puts harmless ones in their place. */
struct machine {
    bool (*prepare)(const struct config *config, struct failure *failure); /* disks, network, names, files, clock */
    void (*end_all)(void);                                                 /* kill every process but init */
    bool (*hold)(bool on);  /* begin to hold every process but init, or let them go; false: it cannot */
    bool (*held)(void);     /* they all stand still */
    void (*settle)(void);   /* bring to the disks what is not there, and give back what is only cached */
    bool (*renew)(const struct identity_card *card, struct failure *failure); /* clock, entropy, network, names */
    bool (*volume)(enum order order, unsigned disk, uint64_t size, struct failure *failure);
    void (*finish)(void); /* every process is killed: leave nothing unwritten on what outlives the VM */
};

struct guest {
    const struct machine *machine;
    struct port port;
    struct parser parser;
    struct outbuf out;
    struct workload workload;
    struct execs execs;
    struct hold hold;
    struct orders orders;
    struct console console;
    struct config config;
    bool configured;
    uint8_t *raw_config;
    size_t raw_length;
    bool raw_refused; /* more parts came than a configuration may have */

    /* This connection: false or zero until the host has synchronised. */
    bool synced;
    bool told_ready, told_end, end_seen;
    uint32_t log_credit;

    int signals;
    bool signals_ready;
    int64_t end_at; /* when the end no longer waits for the host; NEVER while the workload lives */

    const uint8_t *input_at, *input_end;
    uint8_t input[INPUT_SIZE];
};

/* `port` is open and does not block. */
bool guest_init(struct guest *guest, const struct machine *machine, int port);

/* Live until the workload is over and the host knows, or cannot be waited for any longer. */
void guest_run(struct guest *guest);

/* conversation.c */
void guest_hear(struct guest *guest);
void guest_tell(struct guest *guest);
void guest_lose_host(struct guest *guest);
bool guest_hears_more(struct guest *guest);

#endif
