#include "check.h"
#include "wsf.h"

#include <string.h>

/* The octets between the first one and the mask key, in a frame without one. */
static const struct {
    uint64_t length;
    size_t size;
    uint8_t octets[9];
} lengths[] = {
    {0, 1, {0x00}},
    {1, 1, {0x01}},
    {124, 1, {0x7c}},
    {125, 1, {0x7d}},
    {126, 3, {0x7e, 0x00, 0x7e}},
    {127, 3, {0x7e, 0x00, 0x7f}},
    {255, 3, {0x7e, 0x00, 0xff}},
    {256, 3, {0x7e, 0x01, 0x00}},
    {65534, 3, {0x7e, 0xff, 0xfe}},
    {65535, 3, {0x7e, 0xff, 0xff}},
    {65536, 9, {0x7f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00}},
    {65537, 9, {0x7f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x01}},
    {0x7fffffff, 9, {0x7f, 0x00, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff}},
    {0x80000000, 9, {0x7f, 0x00, 0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00}},
    {0xffffffff, 9, {0x7f, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff}},
    {0x100000000, 9, {0x7f, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00}},
    {0x0123456789abcdef, 9, {0x7f, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}},
    {0x7fffffffffffffff, 9, {0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
};

static const uint8_t key[WSF_KEY_SIZE] = {0x37, 0xfa, 0x21, 0x3d};

/* The header of lengths[row], put together octet by octet. */
static size_t expected_header(uint8_t *out, uint8_t first, size_t row, int masked)
{
    size_t size = 0;

    out[size++] = first;
    for (size_t i = 0; i < lengths[row].size; i++)
        out[size++] = lengths[row].octets[i];
    if (masked) {
        out[1] |= 0x80;
        for (size_t i = 0; i < WSF_KEY_SIZE; i++)
            out[size++] = key[i];
    }
    return size;
}

static void check_header(const uint8_t *expected, size_t size, uint8_t first, uint64_t length, const uint8_t *mask)
{
    uint8_t out[WSF_MAX_HEADER];

    CHECK(wsf_frame_header(out, first, length, mask) == size);
    CHECK(memcmp(out, expected, size) == 0);
}

/* ---- Lengths ----------------------------------------------------------------------------------------------- */

static void length_takes_the_shortest_encoding_in_network_byte_order(void)
{
    for (size_t row = 0; row < COUNT(lengths); row++) {
        uint8_t out[WSF_MAX_HEADER];
        CHECK(wsf_frame_header(out, 0x82, lengths[row].length, NULL) == 1 + lengths[row].size);
        CHECK(out[0] == 0x82);
        CHECK(memcmp(out + 1, lengths[row].octets, lengths[row].size) == 0);
    }
}

static void key_sets_the_mask_bit_and_comes_last(void)
{
    check_header((const uint8_t[]){0x82, 0x80, 0x37, 0xfa, 0x21, 0x3d}, 6, 0x82, 0, key);
    check_header((const uint8_t[]){0x82, 0xfd, 0x37, 0xfa, 0x21, 0x3d}, 6, 0x82, 125, key);
    check_header((const uint8_t[]){0x82, 0xfe, 0x00, 0x7e, 0x37, 0xfa, 0x21, 0x3d}, 8, 0x82, 126, key);
    check_header((const uint8_t[]){0x82, 0xfe, 0xff, 0xff, 0x37, 0xfa, 0x21, 0x3d}, 8, 0x82, 65535, key);
    check_header((const uint8_t[]){0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0x37, 0xfa, 0x21, 0x3d}, 14, 0x82, 65536, key);
    check_header((const uint8_t[]){0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0x37, 0xfa, 0x21, 0x3d}, 14, 0x82,
                 (uint64_t)1 << 32, key);
    check_header((const uint8_t[]){0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x37, 0xfa, 0x21, 0x3d},
                 14, 0x82, INT64_MAX, key);
}

static void key_of_zeros_still_masks(void)
{
    check_header((const uint8_t[]){0x81, 0x85, 0, 0, 0, 0}, 6, 0x81, 5, (const uint8_t[]){0, 0, 0, 0});
}

static void longest_header_has_fourteen_octets(void)
{
    uint8_t out[WSF_MAX_HEADER];

    CHECK(WSF_MAX_HEADER == 14);
    CHECK(wsf_frame_header(out, 0x82, INT64_MAX, key) == WSF_MAX_HEADER);
}

/* ---- First octet ------------------------------------------------------------------------------------------- */

static void constants_are_the_bits_of_the_rfc(void)
{
    CHECK(WSF_FIN == 0x80 && WSF_RSV1 == 0x40 && WSF_RSV2 == 0x20 && WSF_RSV3 == 0x10);
    CHECK(WSF_KEY_SIZE == 4);
    check_header((const uint8_t[]){0xc1, 0x00}, 2, WSF_FIN | WSF_RSV1 | 0x1, 0, NULL);
    check_header((const uint8_t[]){0xb2, 0x00}, 2, WSF_FIN | WSF_RSV2 | WSF_RSV3 | 0x2, 0, NULL);
}

static void every_fin_rsv_and_opcode_is_kept_at_every_length(void)
{
    for (unsigned first = 0; first < 256; first++) {
        for (size_t row = 0; row < COUNT(lengths); row++) {
            for (int masked = 0; masked < 2; masked++) {
                uint8_t expected[WSF_MAX_HEADER];
                const size_t size = expected_header(expected, (uint8_t)first, row, masked);
                check_header(expected, size, (uint8_t)first, lengths[row].length, masked ? key : NULL);
            }
        }
    }
}

/* ---- Memory ------------------------------------------------------------------------------------------------ */

static void nothing_is_written_outside_of_the_size_returned(void)
{
    uint8_t *after = fence_after(WSF_MAX_HEADER) + WSF_MAX_HEADER;
    uint8_t *before = fence_before(2 * WSF_MAX_HEADER);

    for (size_t row = 0; row < COUNT(lengths); row++) {
        for (int masked = 0; masked < 2; masked++) {
            uint8_t expected[WSF_MAX_HEADER];
            const size_t size = expected_header(expected, 0x81, row, masked);
            const uint8_t *mask = masked ? key : NULL;

            CHECK(wsf_frame_header(after - size, 0x81, lengths[row].length, mask) == size);
            CHECK(memcmp(after - size, expected, size) == 0);

            for (int fill = 0x00; fill <= 0xff; fill += 0xff) {
                memset(before, fill, 2 * WSF_MAX_HEADER);
                CHECK(wsf_frame_header(before, 0x81, lengths[row].length, mask) == size);
                CHECK(memcmp(before, expected, size) == 0);
                for (size_t i = size; i < 2 * WSF_MAX_HEADER; i++)
                    CHECK(before[i] == fill);
            }
        }
    }
}

static void only_four_octets_of_key_are_read(void)
{
    uint8_t *after = fence_after(WSF_KEY_SIZE), *before = fence_before(WSF_KEY_SIZE);

    memcpy(after, key, WSF_KEY_SIZE);
    memcpy(before, key, WSF_KEY_SIZE);
    for (size_t row = 0; row < COUNT(lengths); row++) {
        uint8_t expected[WSF_MAX_HEADER];
        const size_t size = expected_header(expected, 0x82, row, 1);
        check_header(expected, size, 0x82, lengths[row].length, after);
        check_header(expected, size, 0x82, lengths[row].length, before);
    }
}

/* ---- RFC 6455, section 5.7 --------------------------------------------------------------------------------- */

static void rfc_example_unmasked_text(void)
{
    check_header((const uint8_t[]){0x81, 0x05}, 2, 0x81, 5, NULL);
}

static void rfc_example_masked_text(void)
{
    check_header((const uint8_t[]){0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d}, 6, 0x81, 5, key);
}

static void rfc_example_fragmented_unmasked_text(void)
{
    check_header((const uint8_t[]){0x01, 0x03}, 2, 0x01, 3, NULL);
    check_header((const uint8_t[]){0x80, 0x02}, 2, 0x80, 2, NULL);
}

static void rfc_example_unmasked_ping_and_masked_pong(void)
{
    check_header((const uint8_t[]){0x89, 0x05}, 2, 0x89, 5, NULL);
    check_header((const uint8_t[]){0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d}, 6, 0x8a, 5, key);
}

static void rfc_example_256_octets_binary(void)
{
    check_header((const uint8_t[]){0x82, 0x7e, 0x01, 0x00}, 4, 0x82, 256, NULL);
}

static void rfc_example_64_kibioctets_binary(void)
{
    check_header((const uint8_t[]){0x82, 0x7f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00}, 10, 0x82, 65536, NULL);
}

int main(void)
{
    RUN(length_takes_the_shortest_encoding_in_network_byte_order);
    RUN(key_sets_the_mask_bit_and_comes_last);
    RUN(key_of_zeros_still_masks);
    RUN(longest_header_has_fourteen_octets);
    RUN(constants_are_the_bits_of_the_rfc);
    RUN(every_fin_rsv_and_opcode_is_kept_at_every_length);
    RUN(nothing_is_written_outside_of_the_size_returned);
    RUN(only_four_octets_of_key_are_read);
    RUN(rfc_example_unmasked_text);
    RUN(rfc_example_masked_text);
    RUN(rfc_example_fragmented_unmasked_text);
    RUN(rfc_example_unmasked_ping_and_masked_pong);
    RUN(rfc_example_256_octets_binary);
    RUN(rfc_example_64_kibioctets_binary);
    return report();
}
