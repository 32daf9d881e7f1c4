/* What the host says to run: parsed from TLV fields, owned, bounded. */
#ifndef SWG_CONFIG_H
#define SWG_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "failure.h"

enum { CONFIG_MAX_BYTES = 4 * 1024 * 1024, TEXTS_MAX = 4096, FILES_MAX = 1024, VOLUMES_MAX = 24 };

/* A NULL-terminated list of texts, as execve takes it. Zeroed: empty. */
struct texts {
    char **items;
    size_t count;
};

bool texts_add(struct texts *texts, const char *text, size_t length);
void texts_free(struct texts *texts);
/* The value of K in a list of K=V, or NULL. */
const char *texts_value(const struct texts *texts, const char *key);
/* Set K=V where `assignment` is K=V, in place of an older K. */
bool texts_assign(struct texts *texts, const char *assignment);

struct file {
    char *path;
    uint32_t mode;
    const uint8_t *content; /* inside the raw configuration */
    size_t length;
};

/* A disk with a file system of its own, and where it is to be. */
struct volume {
    uint8_t disk; /* 2 is vdc: the two before it are the guest's own */
    bool read_only;
    char *place;
};

/* What a process is started from: the workload, or a command beside it. */
struct command {
    struct texts arguments;
    struct texts environment;
    char *user;
    char *workdir;
    bool terminal;
    uint16_t rows, columns;
    bool attached, open_stdin; /* of a workload: its output waits for who reads it; its stdin is a pipe */
};

enum { MAC_SIZE = 6, IPV6_SIZE = 16, MACHINE_ID_SIZE = 16 };

/* Who the guest is, and what no two guests may share: given at its start, and anew when it is restored. */
struct identity_card {
    char *hostname;
    bool has_network, has_mac, has_ipv6, has_gateway_mac, has_machine_id;
    uint8_t mac[MAC_SIZE], ipv6[IPV6_SIZE], gateway_mac[MAC_SIZE], machine_id[MACHINE_ID_SIZE];
    uint32_t ipv4, gateway; /* network order */
    struct texts nameservers;
    const uint8_t *entropy; /* inside the raw message */
    size_t entropy_length;
    uint64_t unix_time_ns;
    uint64_t generation; /* how often it was restored; 0: it never was, or only goes on */
};

struct config {
    struct command command;
    struct identity_card card;
    struct file *files;
    size_t file_count;
    struct volume volumes[VOLUMES_MAX]; /* in the order of mounting */
    size_t volume_count;
};

/* Both take a zeroed struct. False with the failure `bad-config` for malformed input; then free what is there. */
bool config_parse(struct config *config, const uint8_t *raw, size_t length, struct failure *failure);
bool command_parse(struct command *command, const uint8_t *raw, size_t length, struct failure *failure);

/* As config_parse, for an identity alone; anything else in it is passed over. `entropy` points into `raw`. */
bool card_parse(struct identity_card *card, const uint8_t *raw, size_t length, struct failure *failure);

/* The raw configuration is about to go: so must what points into it. */
void config_forget_raw(struct config *config);

void command_free(struct command *command);
void card_free(struct identity_card *card);
void config_free(struct config *config);

#endif
