/*
 * Frames of the guest channel, and how a byte pipe finds its footing again. The whole protocol, with
 * its reasons, is docs/design/guest-channel.md.
 *
 * A frame: u32 payload length, u16 type, u16 stream, u32 crc32 of the first eight bytes and the
 * payload; then the payload. All integers little-endian.
 */
#ifndef SWG_FRAME_H
#define SWG_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FRAME_HEADER = 12,
    FRAME_MAX_PAYLOAD = 65536,
    SYNC_MAGIC = 16,
    SYNC_NONCE = 16,
    SYNC_SIZE = SYNC_MAGIC + SYNC_NONCE,
};

enum frame_type {
    /* host to guest */
    FRAME_CONFIG_PART = 1,
    FRAME_CONFIG_END = 2,
    FRAME_ACK = 3,
    FRAME_STOP = 4,
    FRAME_SEEN_END = 5,
    FRAME_FREEZE = 6,
    FRAME_THAW = 7,
    FRAME_ORDER = 8,
    FRAME_EXEC_START = 16,
    FRAME_STDIN = 17,
    FRAME_STDIN_EOF = 18,
    FRAME_RESIZE = 19,
    FRAME_SIGNAL = 20,
    FRAME_HANG_UP = 21,
    FRAME_COPY_IN = 22,
    FRAME_COPY_OUT = 23,
    /* either way: bytes that the other side may send on this stream */
    FRAME_CREDIT = 32,
    /* guest to host */
    FRAME_HELLO = 64,
    FRAME_READY = 65,
    FRAME_FAILED = 66,
    FRAME_EXITED = 67,
    FRAME_OUTPUT = 68,
    FRAME_FROZEN = 69,
    FRAME_THAWED = 70,
    FRAME_ORDERED = 71,
    FRAME_EXEC_STARTED = 80,
    FRAME_EXEC_REFUSED = 81,
    FRAME_EXEC_OUTPUT = 82,
    FRAME_EXEC_EXIT = 83,
};

extern const uint8_t sync_magic[SYNC_MAGIC];

struct frame {
    uint16_t type;
    uint16_t stream;
    uint32_t length;
    const uint8_t *payload; /* inside the parser; valid until it is asked for the next */
};

enum parse_event { PARSE_MORE, PARSE_FRAME, PARSE_SYNC };

/* One direction of the pipe. All zero is its first state: hunting for the host's magic. */
struct parser {
    enum { HUNT_MAGIC, READ_NONCE, READ_HEADER, READ_PAYLOAD } state;
    size_t have;
    struct frame frame;
    uint32_t crc;
    uint8_t header[FRAME_HEADER];
    uint8_t nonce[SYNC_NONCE]; /* valid after PARSE_SYNC */
    uint8_t payload[FRAME_MAX_PAYLOAD];
};

/* Take bytes from *cursor on, up to the next event; PARSE_MORE when all were taken. */
enum parse_event parser_next(struct parser *parser, const uint8_t **cursor, const uint8_t *end);

/* Write the header of a frame whose payload lies behind it already. */
void frame_seal(uint8_t *at, enum frame_type type, uint16_t stream, uint32_t length);

#endif
