/* CRC-32 of IEEE 802.3 (reflected, as in zlib). */
#ifndef SWG_CRC32_H
#define SWG_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* `crc` is 0 for a first piece, else the result for the pieces before. */
uint32_t crc32_update(uint32_t crc, const uint8_t *data, size_t length);

#endif
