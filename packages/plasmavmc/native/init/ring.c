#include "ring.h"

#include <string.h>

#include "bytes.h"

static void copy_in(struct ring *ring, uint64_t position, const uint8_t *from, size_t length)
{
    size_t at = position % RING_CAPACITY;
    size_t before_wrap = RING_CAPACITY - at < length ? RING_CAPACITY - at : length;
    memcpy(ring->bytes + at, from, before_wrap);
    memcpy(ring->bytes, from + before_wrap, length - before_wrap);
}

static void copy_out(const struct ring *ring, uint64_t position, uint8_t *into, size_t length)
{
    size_t at = position % RING_CAPACITY;
    size_t before_wrap = RING_CAPACITY - at < length ? RING_CAPACITY - at : length;
    memcpy(into, ring->bytes + at, before_wrap);
    memcpy(into + before_wrap, ring->bytes, length - before_wrap);
}

static uint16_t record_length(const struct ring *ring, uint64_t position, uint8_t *stream)
{
    uint8_t header[RING_RECORD_HEADER];
    copy_out(ring, position, header, sizeof header);
    if (stream)
        *stream = header[0];
    return get_u16(header + 2);
}

static void forget_first(struct ring *ring)
{
    uint16_t length = record_length(ring, ring->first, NULL);
    ring->first += RING_RECORD_HEADER + (uint64_t)length;
    ring->first_offset += length;
    if (ring->next_to_send < ring->first) {
        ring->next_to_send = ring->first;
        ring->send_offset = ring->first_offset;
    }
}

static void drop_for(struct ring *ring, size_t wanted)
{
    while (RING_CAPACITY - (ring->last - ring->first) < wanted) {
        uint64_t before = ring->first_offset;
        forget_first(ring);
        ring->dropped += ring->first_offset - before;
    }
}

static void append_record(struct ring *ring, uint8_t stream, const uint8_t *data, uint16_t length)
{
    uint8_t header[RING_RECORD_HEADER] = {stream, 0, 0, 0};
    put_u16(header + 2, length);
    drop_for(ring, sizeof header + length);
    copy_in(ring, ring->last, header, sizeof header);
    copy_in(ring, ring->last + sizeof header, data, length);
    ring->last += sizeof header + length;
    ring->last_offset += length;
}

void ring_append(struct ring *ring, uint8_t stream, const uint8_t *data, size_t length)
{
    while (length) {
        uint16_t piece = (uint16_t)(length < RING_RECORD_MAX ? length : RING_RECORD_MAX);
        append_record(ring, stream, data, piece);
        data += piece;
        length -= piece;
    }
}

void ring_acknowledge(struct ring *ring, uint64_t offset)
{
    while (ring->first < ring->last && ring->first_offset + record_length(ring, ring->first, NULL) <= offset)
        forget_first(ring);
}

void ring_rewind(struct ring *ring)
{
    ring->next_to_send = ring->first;
    ring->send_offset = ring->first_offset;
}

bool ring_has_unsent(const struct ring *ring)
{
    return ring->next_to_send < ring->last;
}

size_t ring_take(struct ring *ring, uint8_t *into, size_t room, uint8_t *stream, uint64_t *offset)
{
    size_t taken = 0;
    *offset = ring->send_offset;
    while (ring_has_unsent(ring)) {
        uint8_t of;
        uint16_t length = record_length(ring, ring->next_to_send, &of);
        if (length > room - taken || (taken && of != *stream))
            break;
        *stream = of;
        copy_out(ring, ring->next_to_send + RING_RECORD_HEADER, into + taken, length);
        taken += length;
        ring->next_to_send += RING_RECORD_HEADER + (uint64_t)length;
        ring->send_offset += length;
    }
    return taken;
}
