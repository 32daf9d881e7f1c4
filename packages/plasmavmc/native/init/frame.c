#include "frame.h"

#include <string.h>

#include "bytes.h"
#include "crc32.h"

/* The first byte does not occur again, so a match that breaks off never hides another one's start. */
const uint8_t sync_magic[SYNC_MAGIC] = {0xF5, 's', 'w', 'g', '-', 'g', 'u', 'e',
                                        's', 't', '-', 's', 'y', 'n', 'c', '1'};

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Copy what is there towards `want` bytes; true when they are complete. */
static bool gather(struct parser *parser, uint8_t *into, size_t want, const uint8_t **cursor, const uint8_t *end)
{
    size_t take = smaller(want - parser->have, (size_t)(end - *cursor));
    memcpy(into + parser->have, *cursor, take);
    parser->have += take;
    *cursor += take;
    if (parser->have < want)
        return false;
    parser->have = 0;
    return true;
}

static bool hunt(struct parser *parser, const uint8_t **cursor, const uint8_t *end)
{
    while (*cursor < end) {
        uint8_t byte = *(*cursor)++;
        if (byte != sync_magic[parser->have])
            parser->have = byte == sync_magic[0];
        else if (++parser->have == SYNC_MAGIC) {
            parser->have = 0;
            return true;
        }
    }
    return false;
}

static bool header_sound(struct parser *parser)
{
    static const uint8_t nothing[FRAME_HEADER];
    const uint8_t *header = parser->header;
    parser->frame.length = get_u32(header);
    parser->frame.type = get_u16(header + 4);
    parser->frame.stream = get_u16(header + 6);
    parser->frame.payload = parser->payload;
    parser->crc = get_u32(header + 8);
    return memcmp(header, nothing, FRAME_HEADER) != 0 && parser->frame.length <= FRAME_MAX_PAYLOAD;
}

static bool payload_sound(const struct parser *parser)
{
    uint32_t crc = crc32_update(0, parser->header, 8);
    return crc32_update(crc, parser->payload, parser->frame.length) == parser->crc;
}

enum parse_event parser_next(struct parser *parser, const uint8_t **cursor, const uint8_t *end)
{
    for (;;) {
        switch (parser->state) {
        case HUNT_MAGIC:
            if (!hunt(parser, cursor, end))
                return PARSE_MORE;
            parser->state = READ_NONCE;
            break;
        case READ_NONCE:
            if (!gather(parser, parser->nonce, SYNC_NONCE, cursor, end))
                return PARSE_MORE;
            parser->state = READ_HEADER;
            return PARSE_SYNC;
        case READ_HEADER:
            if (!gather(parser, parser->header, FRAME_HEADER, cursor, end))
                return PARSE_MORE;
            parser->state = header_sound(parser) ? READ_PAYLOAD : HUNT_MAGIC;
            break;
        case READ_PAYLOAD:
            if (!gather(parser, parser->payload, parser->frame.length, cursor, end))
                return PARSE_MORE;
            if (!payload_sound(parser)) {
                parser->state = HUNT_MAGIC;
                break;
            }
            parser->state = READ_HEADER;
            return PARSE_FRAME;
        }
    }
}

void frame_seal(uint8_t *at, enum frame_type type, uint16_t stream, uint32_t length)
{
    put_u32(at, length);
    put_u16(at + 4, (uint16_t)type);
    put_u16(at + 6, stream);
    uint32_t crc = crc32_update(0, at, 8);
    put_u32(at + 8, crc32_update(crc, at + FRAME_HEADER, length));
}
