#include "wsf.h"

#include <string.h>

/* One register: x86-64 always has SSE2, and ARM64 has NEON. Elsewhere, the compiler splits it into smaller steps. */
typedef uint32_t words __attribute__((vector_size(16)));

void wsf_mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *key)
{
    const size_t whole = size - size % sizeof(words);
    uint32_t word;
    size_t i = 0;

    memcpy(&word, key, sizeof word);
    const words repeated = {word, word, word, word};
    for (; i < whole; i += sizeof(words)) {
        words octets;
        memcpy(&octets, src + i, sizeof octets); /* one instruction; allows any alignment, no aliasing problem */
        octets ^= repeated;
        memcpy(dst + i, &octets, sizeof octets);
    }
    for (; i < size; i++)
        dst[i] = src[i] ^ key[i % WSF_KEY_SIZE];
}
