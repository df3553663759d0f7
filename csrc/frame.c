#include "wsf.h"

#include <string.h>

size_t wsf_frame_header(uint8_t *out, uint8_t first, uint64_t length, const uint8_t *key)
{
    const uint8_t masked = key != NULL ? 0x80 : 0;
    size_t size = 2;
    int extended = 0; /* octets of extended payload length, in network byte order */

    out[0] = first;
    if (length < 126) {
        out[1] = (uint8_t)(masked | length);
    } else if (length < 65536) {
        out[1] = (uint8_t)(masked | 126);
        extended = 2;
    } else {
        out[1] = (uint8_t)(masked | 127);
        extended = 8;
    }
    while (extended-- > 0)
        out[size++] = (uint8_t)(length >> (8 * extended));
    if (key != NULL) {
        memcpy(out + size, key, WSF_KEY_SIZE);
        size += WSF_KEY_SIZE;
    }
    return size;
}
