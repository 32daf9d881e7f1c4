/*
 * What waits to be written to the port: whole frames in one bounded buffer. Producers ask for room
 * first and keep what they have where there is none, so nothing here ever grows.
 */
#ifndef SWG_OUTBUF_H
#define SWG_OUTBUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

enum {
    OUT_CAPACITY = 160 * 1024,
    OUT_DATA_MAX = 16 * 1024,  /* payload of one data frame, so that streams take turns */
    OUT_CONTROL_MAX = 1024,    /* payload of any other frame */
    OUT_CONTROL_RESERVE = 32 * 1024, /* room that data leaves to control frames */
};

struct outbuf {
    size_t start;
    size_t end;
    uint8_t bytes[OUT_CAPACITY];
};

size_t outbuf_pending(const struct outbuf *out);
void outbuf_clear(struct outbuf *out);

/* Is there room for one more frame of this kind? */
bool outbuf_takes_data(struct outbuf *out);
bool outbuf_takes_control(struct outbuf *out);

/* Where the next frame's payload goes; call only where there is room. Nothing happens until the commit. */
uint8_t *outbuf_payload(struct outbuf *out);
void outbuf_commit(struct outbuf *out, enum frame_type type, uint16_t stream, size_t length);

/* Bytes that are no frame: the answer to a sync. */
void outbuf_raw(struct outbuf *out, const uint8_t *bytes, size_t length);

/* Write what can be written without blocking. False where the port would block; errno is write's. */
bool outbuf_flush(struct outbuf *out, int fd);

#endif
