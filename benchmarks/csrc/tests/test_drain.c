#include "bench.h"
#include "pair.h"

#include <pthread.h>
#include <sched.h>

enum { CROWD = 100 };

static int awake;   /* every test runs with either */
static int records; /* and one with records of TLS */

/* bench_drain in a thread of its own, over our peers' ends of some pairs. */
struct drain {
    struct pair pairs[CROWD];
    int fds[CROWD];
    size_t n;
    int stop[2]; /* pipe: read end, write end */
    struct bench_count count;
    int result;
    pthread_t thread;
};

static void *run(void *argument)
{
    struct drain *drain = argument;

    drain->result = bench_drain(drain->fds, drain->n, drain->stop[0], &drain->count, awake, records);
    return NULL;
}

static void start(struct drain *drain, size_t n)
{
    *drain = (struct drain){.n = n};
    CHECK(pipe(drain->stop) == 0);
    for (size_t i = 0; i < n; i++) {
        drain->pairs[i] = open_pair(ROOMY);
        drain->fds[i] = drain->pairs[i].theirs;
    }
    CHECK(pthread_create(&drain->thread, NULL, run, drain) == 0);
}

/* alarm() ends a wait that is in vain. */
static void await_count(const struct drain *drain, uint64_t messages, uint64_t octets)
{
    while (__atomic_load_n(&drain->count.messages, __ATOMIC_ACQUIRE) < messages)
        sched_yield();
    CHECK(__atomic_load_n(&drain->count.messages, __ATOMIC_ACQUIRE) == messages);
    CHECK(__atomic_load_n(&drain->count.octets, __ATOMIC_ACQUIRE) == octets);
}

static uint8_t frame[BIG + WSF_MAX_HEADER];

/* Make a server's frame of so many octets of payload in `frame`; return its size. */
static size_t make_frame(uint8_t first, size_t size)
{
    const size_t head = wsf_frame_header(frame, first, size, NULL);

    memcpy(frame + head, pattern, size);
    return head + size;
}

static void finish(struct drain *drain)
{
    CHECK(pthread_join(drain->thread, NULL) == 0);
    CHECK(drain->result == 0);
    for (size_t i = 0; i < drain->n; i++)
        close_pair(drain->pairs[i]);
    close(drain->stop[0]);
}

static void stop(struct drain *drain)
{
    CHECK(write(drain->stop[1], "", 1) == 1);
    finish(drain);
    close(drain->stop[1]);
}

static void send_whole(int fd, const uint8_t *data, size_t size)
{
    for (size_t total = 0; total < size;) {
        const ssize_t sent = send(fd, data + total, size - total, MSG_NOSIGNAL);
        CHECK(sent > 0);
        total += (size_t)sent;
    }
}

static void what_arrives_is_counted_as_it_comes(void)
{
    struct drain drain;

    start(&drain, 1);
    CHECK(send_one(drain.pairs[0].ours, hello) == 7);
    await_count(&drain, 1, 7);
    CHECK(send_one(drain.pairs[0].ours, hello) == 7);
    await_count(&drain, 2, 14);
    stop(&drain);
}

static void what_all_descriptors_get_is_added_up(void)
{
    struct drain drain;
    uint64_t octets = 0;

    start(&drain, CROWD);
    for (size_t i = 0; i < CROWD; i++) {
        const size_t size = make_frame(0x82, 100 + i);
        octets += size;
        send_whole(drain.pairs[i].ours, frame, size);
    }
    await_count(&drain, CROWD, octets);
    stop(&drain);
}

static void more_than_fits_into_the_socket_is_drained(void)
{
    struct drain drain;
    const size_t size = make_frame(0x82, BIG);

    start(&drain, 1);
    send_whole(drain.pairs[0].ours, frame, size);
    await_count(&drain, 1, size);
    stop(&drain);
}

static void every_length_of_header_is_understood_wherever_it_is_cut(void)
{
    static const size_t sizes[] = {0, 1, 125, 126, 65535, 65536};
    struct drain drain;
    uint64_t octets = 0, messages = 0;

    start(&drain, 1);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const size_t size = make_frame(0x81, sizes[i]);
        for (size_t at = 0; at < 12 && at < size; at++) /* octet by octet, and at last all of the rest */
            send_whole(drain.pairs[0].ours, frame + at, at == 11 ? size - at : 1);
        octets += size;
        await_count(&drain, ++messages, octets);
    }
    stop(&drain);
}

static void message_in_fragments_counts_once(void)
{
    struct drain drain;

    start(&drain, 1);
    send_whole(drain.pairs[0].ours,
               (const uint8_t *)"\x01\x01H\x00\x02"
                                "el\x80\x02lo",
               11);
    await_count(&drain, 1, 11);
    stop(&drain);
}

static void pings_are_answered_and_not_counted(void)
{
    static const char *const pongs = "\x8a\x84\0\0\0\0abcd\x8a\x80\0\0\0\0";
    struct drain drain;
    uint8_t got[16];
    size_t size = 0;

    start(&drain, 2);
    /* Between the fragments of a message, and cut in the middle; a pong is not answered. */
    send_whole(drain.pairs[1].ours,
               (const uint8_t *)"\x01\x01H\x89\x04"
                                "ab",
               7);
    CHECK(send_one(drain.pairs[0].ours, hello) == 7);
    send_whole(drain.pairs[1].ours, (const uint8_t *)"cd\x8a\x01x\x89\x00\x80\x01i", 10);
    await_count(&drain, 2, 7 + 6);
    while (size < sizeof got) {
        const ssize_t part = recv(drain.pairs[1].ours, got + size, sizeof got - size, 0);
        CHECK(part > 0);
        size += (size_t)part;
    }
    CHECK(memcmp(got, pongs, sizeof got) == 0);
    stop(&drain);
}

static void what_breaks_the_rules_has_ended(void)
{
    struct drain drain;

    start(&drain, 3);
    send_whole(drain.pairs[0].ours, (const uint8_t *)"\x89\x7e\x00\x7e", 4); /* a ping of 126 octets */
    send_whole(drain.pairs[1].ours,
               (const uint8_t *)"\x81\x81"
                                "keykx",
               7); /* a frame that is masked */
    CHECK(send_one(drain.pairs[2].ours, hello) == 7);
    await_count(&drain, 1, 7);
    CHECK(shutdown(drain.pairs[2].ours, SHUT_WR) == 0);
    finish(&drain);
    close(drain.stop[1]);
}

static void what_was_there_before_is_added_to(void)
{
    struct drain drain = {.n = 1};

    CHECK(pipe(drain.stop) == 0);
    drain.pairs[0] = open_pair(ROOMY);
    drain.fds[0] = drain.pairs[0].theirs;
    drain.count = (struct bench_count){(uint64_t)1 << 40, (uint64_t)1 << 41};
    CHECK(send_one(drain.pairs[0].ours, hello) == 7);
    CHECK(shutdown(drain.pairs[0].ours, SHUT_WR) == 0);
    run(&drain);
    CHECK(drain.result == 0);
    CHECK(drain.count.octets == ((uint64_t)1 << 40) + 7);
    CHECK(drain.count.messages == ((uint64_t)1 << 41) + 1);
    close_pair(drain.pairs[0]);
    close(drain.stop[0]);
    close(drain.stop[1]);
}

static void it_ends_when_the_other_end_of_the_pipe_is_closed(void)
{
    struct drain drain;

    start(&drain, 3);
    CHECK(send_one(drain.pairs[2].ours, hello) == 7);
    await_count(&drain, 1, 7);
    close(drain.stop[1]);
    finish(&drain);
}

static void it_ends_when_all_peers_have_ended(void)
{
    struct drain drain;

    start(&drain, CROWD);
    for (size_t i = 0; i < CROWD; i++) {
        CHECK(send_one(drain.pairs[i].ours, hello) == 7);
        CHECK(shutdown(drain.pairs[i].ours, SHUT_WR) == 0);
    }
    finish(&drain);
    CHECK(drain.count.octets == 7 * CROWD);
    CHECK(drain.count.messages == CROWD);
    close(drain.stop[1]);
}

static void one_peer_that_has_ended_does_not_stop_the_others(void)
{
    struct drain drain;

    start(&drain, 2);
    CHECK(shutdown(drain.pairs[0].ours, SHUT_WR) == 0);
    CHECK(send_one(drain.pairs[1].ours, hello) == 7);
    await_count(&drain, 1, 7);
    stop(&drain);
}

static void no_descriptors_are_no_work(void)
{
    struct drain drain;

    start(&drain, 0);
    finish(&drain);
    CHECK(drain.count.octets == 0);
    close(drain.stop[1]);
}

static void reset_is_an_end(void)
{
    struct drain drain = {.n = 1};

    CHECK(pipe(drain.stop) == 0);
    drain.pairs[0] = tcp_pair(ROOMY);
    drain.fds[0] = drain.pairs[0].ours;
    reset_by_peer(drain.pairs[0]);
    run(&drain);
    CHECK(drain.result == 0);
    close(drain.pairs[0].ours);
    close(drain.stop[0]);
    close(drain.stop[1]);
}

static void records_are_counted_wherever_they_are_cut(void)
{
    static const uint8_t small[] = {23, 3, 3, 0, 2, 0xde, 0xad}, large[5 + 257] = {23, 3, 3, 1, 1};
    struct drain drain;

    records = 1;
    start(&drain, 2);
    for (size_t i = 0; i < sizeof small; i++)
        send_whole(drain.pairs[0].ours, small + i, 1);
    await_count(&drain, 1, 7);
    for (size_t i = 0; i < sizeof large; i++)
        send_whole(drain.pairs[0].ours, large + i, 1);
    await_count(&drain, 2, 7 + sizeof large);
    send_whole(drain.pairs[1].ours, small, sizeof small);
    await_count(&drain, 3, 14 + sizeof large);
    stop(&drain);
    records = 0;
}

static void record_of_another_type_is_the_end(void)
{
    static const uint8_t alert[] = {21, 3, 3, 0, 2, 1, 0};
    struct drain drain;

    records = 1;
    start(&drain, 1);
    send_whole(drain.pairs[0].ours, alert, sizeof alert);
    finish(&drain);
    CHECK(drain.count.octets == 0 && drain.count.messages == 0);
    close(drain.stop[1]);
    records = 0;
}

static void descriptors_that_cannot_be_watched_are_errors(void)
{
    struct bench_count count = {0, 0};
    int ends[2], bad = -1;

    CHECK(pipe(ends) == 0);
    CHECK(bench_drain(&bad, 1, ends[0], &count, 0, 0) == -EBADF);
    CHECK(bench_drain(ends, 1, -1, &count, 0, 0) == -EBADF);
    CHECK(count.octets == 0);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    prepare();
    for (int way = 0; way < 4; way++) {
        const int tcp = way & 1;
        awake = way >> 1;
        open_pair = tcp ? tcp_pair : unix_pair;
        printf("-- %s%s\n", tcp ? "tcp" : "unix", awake ? ", awake" : "");
        RUN(what_arrives_is_counted_as_it_comes);
        RUN(what_all_descriptors_get_is_added_up);
        RUN(more_than_fits_into_the_socket_is_drained);
        RUN(every_length_of_header_is_understood_wherever_it_is_cut);
        RUN(message_in_fragments_counts_once);
        RUN(pings_are_answered_and_not_counted);
        RUN(what_breaks_the_rules_has_ended);
        RUN(what_was_there_before_is_added_to);
        RUN(it_ends_when_the_other_end_of_the_pipe_is_closed);
        RUN(it_ends_when_all_peers_have_ended);
        RUN(one_peer_that_has_ended_does_not_stop_the_others);
        RUN(records_are_counted_wherever_they_are_cut);
        RUN(record_of_another_type_is_the_end);
    }
    printf("-- either\n");
    RUN(no_descriptors_are_no_work);
    RUN(reset_is_an_end);
    RUN(descriptors_that_cannot_be_watched_are_errors);
    return report();
}
