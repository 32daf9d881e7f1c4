/* What the programs need of the kernel: helpers by their numbers, maps as our own loader reads them, byte order. */
#pragma once

#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))
#define PROGRAM(name) SECTION("program/" name)
#define INLINE static inline __attribute__((always_inline))

/* A map, in the section `maps`: a change of its meaning wants another name, since maps outlive the programs that use them. */
struct map {
    __u32 type;
    __u32 key_bytes;
    __u32 value_bytes;
    __u32 entries;
    __u32 flags;
};

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const load_bytes)(const void *frame, __u32 offset, void *to, __u32 length) = (void *)BPF_FUNC_skb_load_bytes;

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "one object serves the little-endian machines");

/* A 16-bit number of a frame, as a constant to compare with. */
#define NET16(number) ((__u16)((((number) & 0xff) << 8) | (((number) >> 8) & 0xff)))
