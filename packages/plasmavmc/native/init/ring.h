/*
 * The last output of the workload, until the host has it safe. Bounded: the oldest goes first and is
 * counted, because the app never waits for us.
 *
 * Bytes of both streams share one numbering: `offset` is the number of a byte since the start. A
 * record of the ring is one read from a pipe: {u8 stream, u8 0, u16 length}, then the bytes.
 */
#ifndef SWG_RING_H
#define SWG_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RING_CAPACITY = 1024 * 1024, RING_RECORD_HEADER = 4, RING_RECORD_MAX = 8 * 1024 };

struct ring {
    /* Positions in the stream of records; position % RING_CAPACITY is the place in `bytes`. */
    uint64_t first, last, next_to_send;
    /* Numbers of output bytes: of the first kept, of the next to come, of the next to send. */
    uint64_t first_offset, last_offset, send_offset;
    uint64_t dropped; /* bytes that went without the host having acknowledged them */
    uint8_t bytes[RING_CAPACITY];
};

void ring_append(struct ring *ring, uint8_t stream, const uint8_t *data, size_t length);

/* All before `offset` is safe on the host. A record acknowledged in part is kept whole. */
void ring_acknowledge(struct ring *ring, uint64_t offset);

/* After a resync: send again from the first kept byte on. */
void ring_rewind(struct ring *ring);

bool ring_has_unsent(const struct ring *ring);

/*
 * Take unsent bytes of one stream, whole records, at most `room` (>= RING_RECORD_MAX); returns how many. They
 * stay in the ring until acknowledged.
 */
size_t ring_take(struct ring *ring, uint8_t *into, size_t room, uint8_t *stream, uint64_t *offset);

#endif
