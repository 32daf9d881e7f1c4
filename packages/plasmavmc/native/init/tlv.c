#include "tlv.h"

#include <string.h>

#include "bytes.h"

bool tlv_next(const uint8_t **cursor, const uint8_t *end, struct tlv *field, bool *sound)
{
    size_t left = (size_t)(end - *cursor);
    *sound = left == 0;
    if (left < TLV_HEADER)
        return false;
    field->tag = get_u16(*cursor);
    field->length = get_u32(*cursor + 2);
    field->value = *cursor + TLV_HEADER;
    if (field->length > left - TLV_HEADER)
        return false;
    *cursor += TLV_HEADER + (size_t)field->length;
    *sound = true;
    return true;
}

uint8_t *tlv_put_text(uint8_t *at, enum tlv_tag tag, const char *text)
{
    size_t length = strlen(text);
    put_u16(at, (uint16_t)tag);
    put_u32(at + 2, (uint32_t)length);
    memcpy(at + TLV_HEADER, text, length);
    return at + TLV_HEADER + length;
}
