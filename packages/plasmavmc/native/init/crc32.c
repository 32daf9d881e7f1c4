#include "crc32.h"

static uint32_t table[256];

static void fill_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
        table[byte] = value;
    }
}

uint32_t crc32_update(uint32_t crc, const uint8_t *data, size_t length)
{
    if (!table[1])
        fill_table();
    crc = ~crc;
    while (length--)
        crc = crc >> 8 ^ table[(crc ^ *data++) & 0xFF];
    return ~crc;
}
