/* Structured payloads: fields of {u16 tag, u32 length, bytes}. Unknown tags are passed over. */
#ifndef SWG_TLV_H
#define SWG_TLV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TLV_HEADER = 6 };

enum tlv_tag {
    TAG_ARG = 1,        /* text, repeated */
    TAG_ENV = 2,        /* text K=V, repeated */
    TAG_USER = 3,       /* text */
    TAG_WORKDIR = 4,    /* text */
    TAG_TERMINAL = 5,   /* u16 rows, u16 columns */
    TAG_STDIO = 6,      /* u8 of enum stdio_flags */
    TAG_HOSTNAME = 16,  /* text */
    TAG_IPV4 = 17,      /* 4 bytes, network order */
    TAG_GATEWAY = 18,   /* 4 bytes, network order */
    TAG_NAMESERVER = 19, /* text, repeated */
    TAG_FILE = 20,      /* u32 mode, u16 length of path, path, content; repeated */
    TAG_ENTROPY = 21,   /* bytes */
    TAG_TIME = 22,      /* u64 nanoseconds since the epoch */
    TAG_MAC = 23,       /* 6 bytes */
    TAG_GENERATION = 24, /* u64, rises with each restore */
    TAG_MACHINE_ID = 25, /* 16 bytes */
    TAG_VOLUME = 26,    /* u8 disk, u8 of enum volume_flags, path; repeated */
    TAG_IPV6 = 27,      /* 16 bytes */
    TAG_GATEWAY_MAC = 28, /* 6 bytes, with TAG_IPV6 */
    TAG_CODE = 32,      /* text */
    TAG_MESSAGE = 33,   /* text */
    TAG_PATH = 40,      /* text */
    TAG_NAME = 41,      /* text */
    TAG_CONTENTS = 42,  /* nothing: not the directory but what is in it */
};

enum stdio_flags { STDIO_ATTACHED = 1, STDIO_OPEN = 2 };

enum volume_flags { VOLUME_READ_ONLY = 1 };

enum { FIRST_VOLUME = 2 };

struct tlv {
    uint16_t tag;
    uint32_t length;
    const uint8_t *value;
};

/* The next field of [*cursor, end). False at the end; *sound says whether that was a proper end. */
bool tlv_next(const uint8_t **cursor, const uint8_t *end, struct tlv *field, bool *sound);

/* Append a text field; returns the new end. The caller has the room. */
uint8_t *tlv_put_text(uint8_t *at, enum tlv_tag tag, const char *text);

#endif
