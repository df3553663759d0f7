#include "pair.h"

static uint8_t expected[BIG + WSF_MAX_HEADER];

/* The masked frame of a client into `expected`, put together the plain way. */
static size_t expect_frame(uint8_t first, const uint8_t *payload, size_t size, const uint8_t *key)
{
    size_t at = 0;

    expected[at++] = first;
    if (size <= 125) {
        expected[at++] = (uint8_t)(0x80 | size);
    } else if (size <= 0xffff) {
        expected[at++] = 0x80 | 126;
        expected[at++] = (uint8_t)(size >> 8);
        expected[at++] = (uint8_t)size;
    } else {
        expected[at++] = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            expected[at++] = (uint8_t)((uint64_t)size >> shift);
    }
    for (size_t i = 0; i < 4; i++)
        expected[at++] = key[i];
    for (size_t i = 0; i < size; i++)
        expected[at++] = payload[i] ^ key[i % 4];
    return at;
}

static void masked_rfc_example(void)
{
    static const uint8_t frame[] = {0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58};
    const struct pair pair = open_pair(ROOMY);
    const struct wsf_buffer payload = {"Hello", 5, 0};
    uint8_t scratch[WSF_MAX_HEADER + 5];
    ssize_t result;

    CHECK(wsf_send_masked(&pair.ours, frame + 2, NULL, 1, (const uint8_t[]){0x81}, &payload, scratch, &result) == 1);
    CHECK(result == sizeof frame);
    check_received(pair, frame, sizeof frame);
    close_pair(pair);
}

static void masked_frame_of_each_receiver_has_its_own_key(void)
{
    static const size_t sizes[] = {0, 1, 2, 3, 4, 125, 126, 1000, 65535, 65536};
    enum { RECEIVERS = 5 };
    uint8_t keys[RECEIVERS * WSF_KEY_SIZE], scratch[WSF_MAX_HEADER + 65536];
    struct pair pairs[RECEIVERS];
    int fds[RECEIVERS];
    ssize_t results[RECEIVERS + 1];

    for (size_t i = 0; i < sizeof keys; i++)
        keys[i] = (uint8_t)(37 * i + 11);
    for (size_t row = 0; row < COUNT(sizes); row++) {
        const struct wsf_buffer payload = {pattern, sizes[row], 0};
        for (size_t i = 0; i < RECEIVERS; i++) {
            pairs[i] = open_pair(ROOMY);
            fds[i] = pairs[i].ours;
        }
        results[RECEIVERS] = 4711;
        CHECK(wsf_send_masked(fds, keys, NULL, RECEIVERS, (const uint8_t[]){0xc2}, &payload, scratch, results) ==
              RECEIVERS);
        CHECK(results[RECEIVERS] == 4711);
        for (size_t i = 0; i < RECEIVERS; i++) {
            const size_t size = expect_frame(0xc2, pattern, sizes[row], keys + i * WSF_KEY_SIZE);
            CHECK(results[i] == (ssize_t)size);
            CHECK(wsf_outcome(results[i], size) == WSF_SENT);
            check_received(pairs[i], expected, size);
            close_pair(pairs[i]);
        }
    }
}

static void masked_groups_choose_first_octet_and_payload(void)
{
    const struct wsf_buffer payloads[] = {{"zero", 4, 0}, {"the first", 9, 0}, {NULL, 0, 0}, {pattern, 20000, 0}};
    const uint8_t firsts[] = {0x81, 0xc1, 0x82, 0xc2};
    const uint32_t groups[] = {1, 3, 0, 2, 3, 1};
    uint8_t keys[COUNT(groups) * WSF_KEY_SIZE], scratch[WSF_MAX_HEADER + 20000];
    struct pair pairs[COUNT(groups)];
    int fds[COUNT(groups)];
    ssize_t results[COUNT(groups)];

    for (size_t i = 0; i < sizeof keys; i++)
        keys[i] = (uint8_t)(41 * i + 3);
    for (size_t i = 0; i < COUNT(groups); i++) {
        pairs[i] = open_pair(ROOMY);
        fds[i] = pairs[i].ours;
    }
    CHECK(wsf_send_masked(fds, keys, groups, COUNT(groups), firsts, payloads, scratch, results) == COUNT(groups));
    for (size_t i = 0; i < COUNT(groups); i++) {
        const struct wsf_buffer *payload = &payloads[groups[i]];
        const size_t size = expect_frame(firsts[groups[i]], payload->data, payload->size, keys + i * WSF_KEY_SIZE);
        CHECK(results[i] == (ssize_t)size);
        check_received(pairs[i], expected, size);
        close_pair(pairs[i]);
    }
}

static void masked_empty_payload_needs_no_data(void)
{
    static const uint8_t key[] = {1, 2, 3, 4};
    const struct pair pair = open_pair(ROOMY);
    const struct wsf_buffer empty = {NULL, 0, 0};
    uint8_t scratch[WSF_MAX_HEADER];
    ssize_t result;

    CHECK(wsf_send_masked(&pair.ours, key, NULL, 1, (const uint8_t[]){0x89}, &empty, scratch, &result) == 1);
    CHECK(result == 6);
    check_received(pair, "\x89\x80\x01\x02\x03\x04", 6);
    close_pair(pair);
}

static void masked_send_keeps_to_scratch_payload_and_keys(void)
{
    static const size_t sizes[] = {0, 1, 31, 125, 126, 4097, 65535, 65536};

    for (size_t row = 0; row < COUNT(sizes); row++) {
        const size_t size = sizes[row];
        for (int at_the_end = 0; at_the_end < 2; at_the_end++) {
            const struct pair pair = open_pair(ROOMY);
            const int fds[] = {pair.ours, pair.ours};
            uint8_t *scratch = fenced(WSF_MAX_HEADER + size, at_the_end);
            uint8_t *octets = fenced(size, at_the_end), *keys = fenced(COUNT(fds) * WSF_KEY_SIZE, at_the_end);
            const struct wsf_buffer payload = {octets, size, 0};
            ssize_t results[2];

            memcpy(octets, pattern, size);
            memcpy(keys, "\x37\xfa\x21\x3d\x01\x02\x03\x04", 8);
            CHECK(wsf_send_masked(fds, keys, NULL, 2, (const uint8_t[]){0x82}, &payload, scratch, results) == 2);
            for (size_t i = 0; i < 2; i++) {
                const size_t frame = expect_frame(0x82, pattern, size, keys + 4 * i);
                CHECK(results[i] == (ssize_t)frame);
                CHECK(recv(pair.theirs, received, frame, MSG_WAITALL) == (ssize_t)frame);
                CHECK(memcmp(received, expected, frame) == 0);
            }
            CHECK(memcmp(octets, pattern, size) == 0);
            CHECK(memcmp(keys, "\x37\xfa\x21\x3d\x01\x02\x03\x04", 8) == 0);
            close_pair(pair);
        }
    }
}

static void masked_partial_write_counts_octets_of_the_frame(void)
{
    static const uint8_t key[] = {9, 8, 7, 6};
    static uint8_t scratch[WSF_MAX_HEADER + BIG];
    const struct pair pair = open_pair(TIGHT);
    const struct wsf_buffer payload = {pattern, BIG, 0};
    const size_t frame = expect_frame(0x82, pattern, BIG, key);
    ssize_t result;

    CHECK(wsf_send_masked(&pair.ours, key, NULL, 1, (const uint8_t[]){0x82}, &payload, scratch, &result) == 0);
    CHECK(result > 0 && result < (ssize_t)frame);
    CHECK(wsf_outcome(result, frame) == WSF_PARTIAL);
    check_received(pair, expected, (size_t)result);
    close_pair(pair);
}

static void masked_failing_descriptors_do_not_stop_the_others(void)
{
    const struct wsf_buffer payload = {pattern, 150000, 0}; /* too much for TIGHT, little enough for ROOMY */
    static uint8_t scratch[WSF_MAX_HEADER + 150000];
    uint8_t keys[COUNT(motley) * WSF_KEY_SIZE];
    struct pair pairs[COUNT(motley)];
    int fds[COUNT(motley)];
    ssize_t results[COUNT(motley)];

    for (size_t i = 0; i < sizeof keys; i++)
        keys[i] = (uint8_t)(91 * i + 5);
    open_motley(pairs, fds);
    CHECK(wsf_send_masked(fds, keys, NULL, COUNT(motley), (const uint8_t[]){0x82}, &payload, scratch, results) == 3);
    for (size_t i = 0; i < COUNT(motley); i++) {
        const size_t frame = expect_frame(0x82, pattern, payload.size, keys + i * WSF_KEY_SIZE);
        CHECK(wsf_outcome(results[i], frame) == motley[i]);
        if (results[i] > 0)
            check_received(pairs[i], expected, (size_t)results[i]);
        close_pair(pairs[i]);
    }
}

static void masked_send_sees_a_tcp_reset(void)
{
    static const uint8_t key[] = {1, 2, 3, 4};
    const struct pair pair = tcp_pair(ROOMY);
    uint8_t scratch[WSF_MAX_HEADER + 7];
    ssize_t result;

    reset_by_peer(pair);
    CHECK(wsf_send_masked(&pair.ours, key, NULL, 1, (const uint8_t[]){0x81}, &hello, scratch, &result) == 0);
    CHECK(result == -ECONNRESET || result == -EPIPE);
    close(pair.ours);
}

int main(void)
{
    prepare();
    for (int tcp = 0; tcp < 2; tcp++) {
        open_pair = tcp ? tcp_pair : unix_pair;
        printf("-- %s\n", tcp ? "tcp" : "unix");
        RUN(masked_rfc_example);
        RUN(masked_frame_of_each_receiver_has_its_own_key);
        RUN(masked_groups_choose_first_octet_and_payload);
        RUN(masked_empty_payload_needs_no_data);
        RUN(masked_send_keeps_to_scratch_payload_and_keys);
        RUN(masked_partial_write_counts_octets_of_the_frame);
        RUN(masked_failing_descriptors_do_not_stop_the_others);
    }
    RUN(masked_send_sees_a_tcp_reset);
    return report();
}
