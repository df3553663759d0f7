#include "check.h"
#include "wsf.h"

#include <string.h>

enum {
    SMALL = 300,           /* every size up to here */
    LARGE = (1 << 20) + 3, /* and a few up to here */
    ALIGNMENTS = 33,       /* one more than the widest vector has that a compiler may take */
    MARGIN = 64,           /* octets watched on both sides of dst */
    CANARY = 0xa5
};

static const size_t large_sizes[] = {511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, LARGE};

static const uint8_t key[WSF_KEY_SIZE] = {0x37, 0xfa, 0x21, 0x3d};

static uint8_t original[LARGE], masked[LARGE]; /* masked[i] depends on i alone, so a prefix serves any size */
static uint8_t canary[MARGIN];

static void naive_mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *mask)
{
    for (size_t i = 0; i < size; i++)
        dst[i] = src[i] ^ mask[i % 4];
}

static void prepare(void)
{
    uint32_t state = 1; /* a linear congruential generator: the same octets on every run */

    for (size_t i = 0; i < LARGE; i++) {
        state = state * 1664525 + 1013904223;
        original[i] = (uint8_t)(state >> 24);
    }
    naive_mask(masked, original, LARGE, key);
    memset(canary, CANARY, MARGIN);
}

static void rfc_example_masked_hello(void)
{
    static const uint8_t expected[] = {0x7f, 0x9f, 0x4d, 0x51, 0x58};
    uint8_t out[5];

    wsf_mask(out, (const uint8_t *)"Hello", 5, key);
    CHECK(memcmp(out, expected, 5) == 0);
}

static void dst_and_src_of_any_alignment_and_size(void)
{
    _Alignas(64) static uint8_t src[ALIGNMENTS + SMALL], dst[MARGIN + ALIGNMENTS + SMALL + MARGIN];

    for (size_t from = 0; from < ALIGNMENTS; from++) {
        memcpy(src + from, original, SMALL);
        for (size_t to = MARGIN; to < MARGIN + ALIGNMENTS; to++) {
            for (size_t size = 0; size <= SMALL; size++) {
                memset(dst + to - MARGIN, CANARY, size + 2 * MARGIN);
                wsf_mask(dst + to, src + from, size, key);
                CHECK(memcmp(dst + to, masked, size) == 0);
                CHECK(memcmp(dst + to - MARGIN, canary, MARGIN) == 0);
                CHECK(memcmp(dst + to + size, canary, MARGIN) == 0);
            }
        }
        CHECK(memcmp(src + from, original, SMALL) == 0);
    }
}

static void in_place_at_any_alignment_and_size(void)
{
    _Alignas(64) static uint8_t data[MARGIN + ALIGNMENTS + SMALL + MARGIN];

    for (size_t at = MARGIN; at < MARGIN + ALIGNMENTS; at++) {
        for (size_t size = 0; size <= SMALL; size++) {
            memset(data + at - MARGIN, CANARY, size + 2 * MARGIN);
            memcpy(data + at, original, size);
            wsf_mask(data + at, data + at, size, key);
            CHECK(memcmp(data + at, masked, size) == 0);
            CHECK(memcmp(data + at - MARGIN, canary, MARGIN) == 0);
            CHECK(memcmp(data + at + size, canary, MARGIN) == 0);
        }
    }
}

static void large_sizes_at_odd_alignments(void)
{
    static uint8_t src[LARGE + 1], dst[MARGIN + LARGE + 3 + MARGIN];

    for (size_t row = 0; row < COUNT(large_sizes); row++) {
        const size_t size = large_sizes[row];
        for (size_t shift = 0; shift < 4; shift++) {
            const uint8_t *from = src + shift % 2;
            uint8_t *to = dst + MARGIN + shift;
            memcpy(src + shift % 2, original, size);
            memset(to - MARGIN, CANARY, size + 2 * MARGIN);
            wsf_mask(to, from, size, key);
            CHECK(memcmp(to, masked, size) == 0);
            CHECK(memcmp(to - MARGIN, canary, MARGIN) == 0);
            CHECK(memcmp(to + size, canary, MARGIN) == 0);
            wsf_mask(to, to, size, key);
            CHECK(memcmp(to, original, size) == 0);
        }
    }
}

static void masking_twice_gives_the_original(void)
{
    uint8_t once[SMALL], twice[SMALL];

    for (size_t size = 0; size <= SMALL; size++) {
        wsf_mask(once, original, size, key);
        wsf_mask(twice, once, size, key);
        CHECK(memcmp(twice, original, size) == 0);
    }
}

static void every_octet_of_the_key_has_its_place(void)
{
    uint8_t expected[SMALL], out[SMALL];

    for (int place = 0; place < WSF_KEY_SIZE; place++) {
        for (int value = 0; value < 256; value++) {
            uint8_t one[WSF_KEY_SIZE] = {0};
            one[place] = (uint8_t)value;
            naive_mask(expected, original, SMALL, one);
            wsf_mask(out, original, SMALL, one);
            CHECK(memcmp(out, expected, SMALL) == 0);
        }
    }
}

/* Also a prefix of each size up to SMALL, then the large ones. */
static size_t nth_size(size_t n)
{
    return n <= SMALL ? n : large_sizes[n - SMALL - 1];
}

static void nothing_is_touched_beyond_the_end(void)
{
    uint8_t *const src_end = fence_after(LARGE) + LARGE, *const dst_end = fence_after(LARGE) + LARGE;
    uint8_t *const key_at_end = fence_after(WSF_KEY_SIZE);

    memcpy(key_at_end, key, WSF_KEY_SIZE);
    for (size_t n = 0; n < SMALL + 1 + COUNT(large_sizes); n++) {
        const size_t size = nth_size(n);
        memcpy(src_end - size, original, size);
        wsf_mask(dst_end - size, src_end - size, size, key_at_end);
        CHECK(memcmp(dst_end - size, masked, size) == 0);
        wsf_mask(src_end - size, src_end - size, size, key_at_end);
        CHECK(memcmp(src_end - size, masked, size) == 0);
    }
}

static void nothing_is_touched_before_the_start(void)
{
    uint8_t *const src = fence_before(LARGE), *const dst = fence_before(LARGE);
    uint8_t *const key_at_start = fence_before(WSF_KEY_SIZE);

    memcpy(key_at_start, key, WSF_KEY_SIZE);
    for (size_t n = 0; n < SMALL + 1 + COUNT(large_sizes); n++) {
        const size_t size = nth_size(n);
        memcpy(src, original, size);
        wsf_mask(dst, src, size, key_at_start);
        CHECK(memcmp(dst, masked, size) == 0);
        wsf_mask(src, src, size, key_at_start);
        CHECK(memcmp(src, masked, size) == 0);
    }
}

int main(void)
{
    prepare();
    RUN(rfc_example_masked_hello);
    RUN(dst_and_src_of_any_alignment_and_size);
    RUN(in_place_at_any_alignment_and_size);
    RUN(large_sizes_at_odd_alignments);
    RUN(masking_twice_gives_the_original);
    RUN(every_octet_of_the_key_has_its_place);
    RUN(nothing_is_touched_beyond_the_end);
    RUN(nothing_is_touched_before_the_start);
    return report();
}
