#include "bench.h"
#include "pair.h"

#include <pthread.h>
#include <sched.h>

enum { CROWD = 100 };

static int awake; /* every test runs with either */

/* bench_drain in a thread of its own, over our peers' ends of some pairs. */
struct drain {
    struct pair pairs[CROWD];
    int fds[CROWD];
    size_t n;
    int stop[2]; /* pipe: read end, write end */
    uint64_t octets;
    int result;
    pthread_t thread;
};

static void *run(void *argument)
{
    struct drain *drain = argument;

    drain->result = bench_drain(drain->fds, drain->n, drain->stop[0], &drain->octets, awake);
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
static void await_octets(const struct drain *drain, uint64_t octets)
{
    while (__atomic_load_n(&drain->octets, __ATOMIC_ACQUIRE) < octets)
        sched_yield();
    CHECK(__atomic_load_n(&drain->octets, __ATOMIC_ACQUIRE) == octets);
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

static void what_arrives_is_counted_as_it_comes(void)
{
    struct drain drain;

    start(&drain, 1);
    CHECK(send_one(drain.pairs[0].ours, hello) == 7);
    await_octets(&drain, 7);
    CHECK(send_one(drain.pairs[0].ours, hello) == 7);
    await_octets(&drain, 14);
    stop(&drain);
}

static void octets_of_all_descriptors_are_added_up(void)
{
    struct drain drain;

    start(&drain, CROWD);
    for (size_t i = 0; i < CROWD; i++) {
        const struct wsf_buffer buffer = {pattern, 100 + i};
        CHECK(send_one(drain.pairs[i].ours, buffer) == (ssize_t)buffer.size);
    }
    await_octets(&drain, 100 * CROWD + CROWD * (CROWD - 1) / 2);
    stop(&drain);
}

static void more_than_fits_into_the_socket_is_drained(void)
{
    struct drain drain;
    ssize_t sent;

    start(&drain, 1);
    for (size_t total = 0; total < BIG; total += (size_t)sent) {
        sent = send(drain.pairs[0].ours, pattern + total, BIG - total, MSG_NOSIGNAL);
        CHECK(sent > 0);
    }
    await_octets(&drain, BIG);
    stop(&drain);
}

static void what_was_there_before_is_added_to(void)
{
    struct drain drain = {.n = 1};

    CHECK(pipe(drain.stop) == 0);
    drain.pairs[0] = open_pair(ROOMY);
    drain.fds[0] = drain.pairs[0].theirs;
    drain.octets = (uint64_t)1 << 40;
    CHECK(send_one(drain.pairs[0].ours, hello) == 7);
    CHECK(shutdown(drain.pairs[0].ours, SHUT_WR) == 0);
    run(&drain);
    CHECK(drain.result == 0);
    CHECK(drain.octets == ((uint64_t)1 << 40) + 7);
    close_pair(drain.pairs[0]);
    close(drain.stop[0]);
    close(drain.stop[1]);
}

static void it_ends_when_the_other_end_of_the_pipe_is_closed(void)
{
    struct drain drain;

    start(&drain, 3);
    CHECK(send_one(drain.pairs[2].ours, hello) == 7);
    await_octets(&drain, 7);
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
    CHECK(drain.octets == 7 * CROWD);
    close(drain.stop[1]);
}

static void one_peer_that_has_ended_does_not_stop_the_others(void)
{
    struct drain drain;

    start(&drain, 2);
    CHECK(shutdown(drain.pairs[0].ours, SHUT_WR) == 0);
    CHECK(send_one(drain.pairs[1].ours, hello) == 7);
    await_octets(&drain, 7);
    stop(&drain);
}

static void no_descriptors_are_no_work(void)
{
    struct drain drain;

    start(&drain, 0);
    finish(&drain);
    CHECK(drain.octets == 0);
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

static void descriptors_that_cannot_be_watched_are_errors(void)
{
    uint64_t octets = 0;
    int ends[2], bad = -1;

    CHECK(pipe(ends) == 0);
    CHECK(bench_drain(&bad, 1, ends[0], &octets, 0) == -EBADF);
    CHECK(bench_drain(ends, 1, -1, &octets, 0) == -EBADF);
    CHECK(octets == 0);
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
        RUN(octets_of_all_descriptors_are_added_up);
        RUN(more_than_fits_into_the_socket_is_drained);
        RUN(what_was_there_before_is_added_to);
        RUN(it_ends_when_the_other_end_of_the_pipe_is_closed);
        RUN(it_ends_when_all_peers_have_ended);
        RUN(one_peer_that_has_ended_does_not_stop_the_others);
    }
    printf("-- either\n");
    RUN(no_descriptors_are_no_work);
    RUN(reset_is_an_end);
    RUN(descriptors_that_cannot_be_watched_are_errors);
    return report();
}
