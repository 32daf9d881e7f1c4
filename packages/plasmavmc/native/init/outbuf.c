#include "outbuf.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

size_t outbuf_pending(const struct outbuf *out)
{
    return out->end - out->start;
}

void outbuf_clear(struct outbuf *out)
{
    out->start = out->end = 0;
}

static bool has_room(struct outbuf *out, size_t payload)
{
    size_t wanted = FRAME_HEADER + payload;
    if (OUT_CAPACITY - out->end >= wanted)
        return true;
    if (OUT_CAPACITY - outbuf_pending(out) < wanted)
        return false;
    memmove(out->bytes, out->bytes + out->start, outbuf_pending(out));
    out->end -= out->start;
    out->start = 0;
    return true;
}

bool outbuf_takes_data(struct outbuf *out)
{
    return OUT_CAPACITY - outbuf_pending(out) >= FRAME_HEADER + OUT_DATA_MAX + OUT_CONTROL_RESERVE &&
           has_room(out, OUT_DATA_MAX);
}

bool outbuf_takes_control(struct outbuf *out)
{
    return has_room(out, OUT_CONTROL_MAX);
}

uint8_t *outbuf_payload(struct outbuf *out)
{
    return out->bytes + out->end + FRAME_HEADER;
}

void outbuf_commit(struct outbuf *out, enum frame_type type, uint16_t stream, size_t length)
{
    frame_seal(out->bytes + out->end, type, stream, (uint32_t)length);
    out->end += FRAME_HEADER + length;
}

void outbuf_raw(struct outbuf *out, const uint8_t *bytes, size_t length)
{
    memcpy(out->bytes + out->end, bytes, length);
    out->end += length;
}

bool outbuf_flush(struct outbuf *out, int fd)
{
    while (out->start < out->end) {
        ssize_t written = write(fd, out->bytes + out->start, out->end - out->start);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        out->start += (size_t)written;
    }
    outbuf_clear(out);
    return true;
}
