#include "pair.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <sys/wait.h>

enum { PAIRS = 300, ROUNDS = 60, LONGEST = 3000 };

static struct pair pairs[PAIRS];
static int fds[PAIRS];
static uint32_t groups[PAIRS];
static ssize_t results[PAIRS];
static uint8_t keys[PAIRS * WSF_KEY_SIZE], scratch[WSF_MAX_THREADS * (LONGEST + WSF_MAX_HEADER)];
static const uint8_t firsts[] = {0x82, 0x81, 0x82};

static void open_pairs(int room)
{
    for (size_t i = 0; i < PAIRS; i++) {
        pairs[i] = open_pair(room);
        fds[i] = pairs[i].ours;
        groups[i] = (uint32_t)(i % 3);
    }
    for (size_t i = 0; i < sizeof keys; i++)
        keys[i] = (uint8_t)(i * 31 + 7);
}

static void close_pairs(void)
{
    for (size_t i = 0; i < PAIRS; i++)
        close_pair(pairs[i]);
}

/* Offer them bit by bit, as somebody does who collects them meanwhile. */
static size_t send_all(struct wsf_sends *sends, size_t step)
{
    CHECK(wsf_begin(sends));
    for (size_t count = step; count < PAIRS; count += step)
        wsf_offer(count);
    return wsf_finish(sends, PAIRS);
}

static void check_got(size_t i, const void *data, size_t size)
{
    CHECK(recv(pairs[i].theirs, received, size, MSG_WAITALL) == (ssize_t)size);
    CHECK(memcmp(received, data, size) == 0);
}

static void each_gets_its_frame_in_every_round(void)
{
    struct wsf_sends sends = {.fds = fds, .groups = groups, .results = results};

    open_pairs(ROOMY);
    for (size_t round = 0; round < ROUNDS; round++) {
        const struct wsf_buffer buffers[] = {{pattern + round, 1 + round, 0}, hello, {pattern + 5, 1000, 0}};
        struct wsf_sends batch = sends;
        batch.buffers = buffers;
        CHECK(send_all(&batch, 1 + round) == PAIRS);
        for (size_t i = 0; i < PAIRS; i++) {
            CHECK(results[i] == (ssize_t)buffers[i % 3].size);
            check_got(i, buffers[i % 3].data, buffers[i % 3].size);
        }
    }
    close_pairs();
}

static void masked_frames_are_those_of_one_thread(void)
{
    const struct wsf_buffer buffers[] = {{pattern, LONGEST, 0}, {pattern + 1, 0, 0}, {pattern + 2, 126, 0}};
    struct wsf_sends sends = {
        fds, groups, buffers, results, keys, firsts, scratch, LONGEST + WSF_MAX_HEADER, WSF_MAX_THREADS, 0};
    uint8_t frame[LONGEST + WSF_MAX_HEADER];

    open_pairs(ROOMY);
    for (int round = 0; round < ROUNDS; round++) {
        CHECK(send_all(&sends, 7) == PAIRS);
        for (size_t i = 0; i < PAIRS; i++) {
            const struct wsf_buffer payload = buffers[i % 3];
            const uint8_t *const key = keys + i * WSF_KEY_SIZE;
            const size_t header = wsf_frame_header(frame, firsts[i % 3], payload.size, key);
            wsf_mask(frame + header, payload.data, payload.size, key);
            CHECK(results[i] == (ssize_t)(header + payload.size));
            check_got(i, frame, header + payload.size);
        }
    }
    close_pairs();
}

static void what_is_not_taken_is_told(void)
{
    const struct wsf_buffer buffers[] = {{pattern, BIG, 0}, hello, {pattern, BIG, 0}};
    struct wsf_sends sends = {.fds = fds, .groups = groups, .buffers = buffers, .results = results};

    open_pairs(TIGHT);
    for (size_t i = 1; i < PAIRS; i += 9)
        close(pairs[i].theirs);
    const size_t complete = send_all(&sends, 64);
    size_t sent = 0;
    for (size_t i = 0; i < PAIRS; i++) {
        if (i % 9 == 1) {
            CHECK(wsf_outcome(results[i], hello.size) == WSF_PIPE);
            continue;
        }
        CHECK(wsf_outcome(results[i], buffers[i % 3].size) == (i % 3 == 1 ? WSF_SENT : WSF_PARTIAL));
        sent += i % 3 == 1;
        check_got(i, buffers[i % 3].data, (size_t)results[i]);
    }
    for (size_t i = 1; i < PAIRS; i += 9)
        pairs[i].theirs = dup(pairs[i].ours); /* for close_pairs() */
    CHECK(complete == sent);
    close_pairs();
}

static void one_batch_is_under_way_at_a_time(void)
{
    const struct wsf_buffer buffers[] = {hello, hello, hello};
    struct wsf_sends sends = {.fds = fds, .groups = groups, .buffers = buffers, .results = results};
    struct wsf_sends other = sends;

    open_pairs(ROOMY);
    CHECK(wsf_begin(&sends));
    wsf_offer(PAIRS / 2);
    CHECK(!wsf_begin(&other));
    CHECK(!wsf_begin(&sends));
    CHECK(wsf_finish(&sends, PAIRS) == PAIRS);
    CHECK(wsf_begin(&other));
    CHECK(wsf_finish(&other, 0) == 0);
    for (size_t i = 0; i < PAIRS; i++)
        check_received(pairs[i], hello.data, hello.size);
    close_pairs();
}

static void one_thread_begins_nothing(void)
{
    struct wsf_sends sends = {.fds = fds, .groups = groups, .buffers = &hello, .results = results};

    wsf_set_threads(1, 16);
    CHECK(!wsf_begin(&sends));
    wsf_set_threads(0, 16);
    CHECK(!wsf_begin(&sends));
    wsf_set_threads(4, 1);
    CHECK(wsf_begin(&sends));
    CHECK(wsf_finish(&sends, 0) == 0);
}

static void the_number_of_threads_may_change_at_any_time(void)
{
    const struct wsf_buffer buffers[] = {{pattern, LONGEST, 0}, hello, {pattern + 2, 126, 0}};
    struct wsf_sends sends = {
        fds, groups, buffers, results, keys, firsts, scratch, LONGEST + WSF_MAX_HEADER, WSF_MAX_THREADS, 0};
    static const unsigned counts[] = {2, 64, 3, 1, 16, 1000, 2, 5};

    open_pairs(ROOMY);
    for (size_t round = 0; round < ROUNDS; round++) {
        wsf_set_threads(counts[round % COUNT(counts)], 1 + round % 5);
        if (counts[round % COUNT(counts)] == 1) {
            CHECK(!wsf_begin(&sends));
            continue;
        }
        CHECK(wsf_begin(&sends));
        wsf_offer(PAIRS / 3);
        wsf_set_threads(counts[(round * 7 + 3) % COUNT(counts)], 3);
        wsf_offer(PAIRS / 2);
        CHECK(wsf_finish(&sends, PAIRS) == PAIRS);
        for (size_t i = 0; i < PAIRS; i++)
            CHECK(recv(pairs[i].theirs, received, (size_t)results[i], MSG_WAITALL) == results[i]);
    }
    wsf_set_threads(4, 1);
    close_pairs();
}

static void wait_for(int fd)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    uint64_t number;

    CHECK(poll(&ready, 1, -1) == 1);
    CHECK(read(fd, &number, sizeof number) == sizeof number);
}

static void a_detached_batch_is_sent_by_others(void)
{
    const struct wsf_buffer buffers[] = {{pattern, LONGEST, 0}, hello, {pattern + 2, 126, 0}};
    struct wsf_sends sends = {.fds = fds, .groups = groups, .buffers = buffers, .results = results};
    int ends[2];

    CHECK(pipe(ends) == 0);
    open_pairs(ROOMY);
    for (size_t round = 0; round < ROUNDS; round++) {
        CHECK(wsf_begin(&sends));
        CHECK(!wsf_detach(&sends, 0, ends[1]));
        CHECK(wsf_detach(&sends, PAIRS, ends[1]));
        CHECK(!wsf_begin(&sends));
        if (round % 3 != 2)
            for (size_t i = round % 2 ? 0 : PAIRS - 1; i < PAIRS; i += 1 + round % 7)
                CHECK(wsf_claim(&sends, i) == (ssize_t)buffers[i % 3].size);
        if (round % 5 == 1)
            wsf_set_threads(1, 1); /* those that are at it go on */
        if (round % 4 != 3) {
            wait_for(ends[0]);
            CHECK(wsf_is_done(&sends));
        }
        CHECK(wsf_finish(&sends, PAIRS) == PAIRS);
        CHECK(wsf_is_done(&sends));
        wsf_set_threads(4, 1 + round % 5);
        for (size_t i = 0; i < PAIRS; i++) {
            CHECK(results[i] == (ssize_t)buffers[i % 3].size);
            check_got(i, buffers[i % 3].data, buffers[i % 3].size);
        }
        if (round % 4 == 3) { /* it may have been told nevertheless */
            struct pollfd ready = {.fd = ends[0], .events = POLLIN};
            if (poll(&ready, 1, 0) == 1)
                wait_for(ends[0]);
        }
    }
    for (size_t i = 0; i < PAIRS; i++)
        CHECK(receive_all(pairs[i]) == 0);
    close_pairs();
    close(ends[0]);
    close(ends[1]);
}

static pthread_t main_thread;
static atomic_int signals, astray;

static void on_signal(int number)
{
    (void)number;
    atomic_fetch_add(pthread_equal(pthread_self(), main_thread) ? &signals : &astray, 1);
}

static void signals_are_left_to_other_threads(void)
{
    const struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    const struct sigaction action = {.sa_handler = on_signal};
    const struct wsf_buffer buffers[] = {hello, {pattern, 100, 0}, hello};
    struct wsf_sends sends = {.fds = fds, .groups = groups, .buffers = buffers, .results = results};

    main_thread = pthread_self();
    open_pairs(ROOMY);
    alarm(0); /* it shares the timer */
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int round = 0; round < ROUNDS || atomic_load(&signals) == 0; round++) {
        CHECK(send_all(&sends, 50) == PAIRS);
        for (size_t i = 0; i < PAIRS; i++)
            while (recv(pairs[i].theirs, received, (size_t)results[i], MSG_WAITALL | MSG_PEEK) != results[i])
                ;
        for (size_t i = 0; i < PAIRS; i++)
            CHECK(recv(pairs[i].theirs, received, (size_t)results[i], 0) == results[i]);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    signal(SIGALRM, SIG_DFL);
    alarm(PATIENCE);
    CHECK(atomic_load(&astray) == 0);
    close_pairs();
}

static void the_child_of_a_fork_has_threads_of_its_own(void)
{
    const struct wsf_buffer buffers[] = {hello, hello, hello};
    struct wsf_sends sends = {
        fds, groups, buffers, results, keys, firsts, scratch, LONGEST + WSF_MAX_HEADER, WSF_MAX_THREADS, 0};
    struct wsf_sends plain = {.fds = fds, .groups = groups, .buffers = buffers, .results = results};
    int status;

    open_pairs(ROOMY);
    CHECK(wsf_begin(&sends));
    wsf_offer(PAIRS / 2);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(PATIENCE);
        wsf_offer(PAIRS - 1);
        CHECK(wsf_is_done(&sends));
        CHECK(wsf_claim(&sends, 3) == (ssize_t)hello.size + 6);
        CHECK(wsf_finish(&sends, PAIRS) == PAIRS); /* and nothing is sent */
        for (size_t i = 0; i < PAIRS; i++)
            CHECK(results[i] == (ssize_t)hello.size + 6);
        open_pairs(ROOMY);
        CHECK(send_all(&plain, 9) == PAIRS);
        for (size_t i = 0; i < PAIRS; i++)
            check_got(i, hello.data, hello.size);
        _exit(0);
    }
    CHECK(wsf_finish(&sends, PAIRS) == PAIRS);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (size_t i = 0; i < PAIRS; i++)
        CHECK(receive_all(pairs[i]) == hello.size + 6); /* once */
    close_pairs();
}

int main(void)
{
    prepare();
    wsf_set_threads(4, 1);
    RUN(each_gets_its_frame_in_every_round);
    wsf_set_threads(4, 16);
    RUN(each_gets_its_frame_in_every_round);
    open_pair = tcp_pair;
    RUN(each_gets_its_frame_in_every_round);
    RUN(masked_frames_are_those_of_one_thread);
    open_pair = unix_pair;
    RUN(what_is_not_taken_is_told);
    RUN(one_batch_is_under_way_at_a_time);
    RUN(one_thread_begins_nothing);
    RUN(the_number_of_threads_may_change_at_any_time);
    RUN(a_detached_batch_is_sent_by_others);
    RUN(signals_are_left_to_other_threads);
    RUN(the_child_of_a_fork_has_threads_of_its_own);
    return report();
}
