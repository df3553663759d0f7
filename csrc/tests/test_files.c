#include "pair.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>

enum { CROWD = 40, PAGE = 4096 };

static struct pair pairs[CROWD];
static int fds[CROWD];
static uint32_t groups[CROWD];
static ssize_t results[CROWD];

/* The data is only in the file. The memory has other bytes, so that a test notices if they are sent. */
static struct wsf_buffer in_file(const uint8_t *data, size_t size)
{
    static uint8_t wrong[BIG];
    const int file = wsf_open_file(data, size);

    CHECK(file > 0);
    return (struct wsf_buffer){wrong, size, file};
}

/* sendfile() has no MSG_DONTWAIT. */
static struct pair open_non_blocking(int room)
{
    const struct pair pair = open_pair(room);

    CHECK(fcntl(pair.ours, F_SETFL, fcntl(pair.ours, F_GETFL) | O_NONBLOCK) == 0);
    return pair;
}

static void open_crowd(int room)
{
    for (size_t i = 0; i < CROWD; i++) {
        pairs[i] = open_non_blocking(room);
        fds[i] = pairs[i].ours;
        groups[i] = (uint32_t)(i % 3);
    }
}

static size_t open_descriptors(void)
{
    size_t count = 0;

    for (int fd = 0; fd < 4096; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* ---- Files ------------------------------------------------------------------------------------------------- */

static void file_is_closed_by_exec_and_by_nobody_else(void)
{
    const size_t before = open_descriptors();
    const int file = wsf_open_file("abc", 3);
    char got[4];

    CHECK(file > 0);
    CHECK(open_descriptors() == before + 1);
    CHECK((fcntl(file, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(pread(file, got, sizeof got, 0) == 3 && memcmp(got, "abc", 3) == 0);
    CHECK(close(file) == 0);
}

static void there_is_no_file_of_nothing(void)
{
    CHECK(wsf_open_file("", 0) == 0);
}

static void there_is_no_file_without_a_descriptor_and_none_is_left_behind(void)
{
    const size_t before = open_descriptors();
    struct rlimit limit, low;

    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    low = limit;
    low.rlim_cur = 3;
    CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
    CHECK(wsf_open_file("abc", 3) == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(open_descriptors() == before);
}

static void file_that_would_have_no_room_is_closed(void)
{
    const size_t before = open_descriptors();
    struct rlimit limit, low;

    CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    low = limit;
    low.rlim_cur = PAGE;
    CHECK(setrlimit(RLIMIT_FSIZE, &low) == 0);
    CHECK(wsf_open_file(pattern, 2 * PAGE) == 0);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(open_descriptors() == before);
}

static void file_is_never_descriptor_0(void)
{
    const int stdin_before = dup(0);

    CHECK(stdin_before > 0);
    CHECK(close(0) == 0);
    CHECK(wsf_open_file("abc", 3) == 0);
    CHECK(fcntl(0, F_GETFD) == -1 && errno == EBADF);
    CHECK(dup2(stdin_before, 0) == 0);
    CHECK(close(stdin_before) == 0);
}

/* ---- Over AF_UNIX and over TCP ----------------------------------------------------------------------------- */

static void every_size_arrives(void)
{
    static const size_t sizes[] = {1, 2, PAGE - 1, PAGE, PAGE + 1, 16388, 65535, 65536, 65537, 100000};

    for (size_t row = 0; row < COUNT(sizes); row++) {
        const struct pair pair = open_non_blocking(ROOMY);
        const struct wsf_buffer buffer = in_file(pattern + row, sizes[row]);
        CHECK(send_one(pair.ours, buffer) == (ssize_t)sizes[row]);
        CHECK(close(buffer.file) == 0);
        check_received(pair, pattern + row, sizes[row]);
        close_pair(pair);
    }
}

static void groups_with_files_and_without_are_mixed(void)
{
    const struct wsf_buffer buffers[] = {in_file(pattern, 60000), hello, in_file(pattern + 5, 20000)};
    const void *const data[] = {pattern, hello.data, pattern + 5};

    open_crowd(ROOMY);
    CHECK(wsf_send_many(fds, groups, CROWD, buffers, results) == CROWD);
    CHECK(close(buffers[0].file) == 0);
    CHECK(close(buffers[2].file) == 0);
    for (size_t i = 0; i < CROWD; i++) {
        CHECK(results[i] == (ssize_t)buffers[i % 3].size);
        check_received(pairs[i], data[i % 3], buffers[i % 3].size);
        close_pair(pairs[i]);
    }
}

static void what_waits_stays_the_same_whatever_comes_after(void)
{
    enum { SIZE = 50000 };
    static uint8_t memory[SIZE];

    open_crowd(ROOMY);
    for (int round = 0; round < 3; round++) {
        memset(memory, 'a' + round, SIZE);
        const struct wsf_buffer buffer = {memory, SIZE, wsf_open_file(memory, SIZE)};
        CHECK(buffer.file > 0);
        memset(memory, '?', SIZE);
        CHECK(wsf_send_many(fds, NULL, CROWD, &buffer, results) == CROWD);
        CHECK(close(buffer.file) == 0);
    }
    for (size_t i = 0; i < CROWD; i++) {
        CHECK(receive_all(pairs[i]) == 3 * SIZE);
        for (size_t n = 0; n < 3 * SIZE; n++)
            CHECK(received[n] == 'a' + n / SIZE);
        close_pair(pairs[i]);
    }
}

static void rest_of_a_partial_write_follows(void)
{
    const struct pair pair = open_non_blocking(TIGHT);
    const struct wsf_buffer buffer = in_file(pattern, BIG);
    const ssize_t result = send_one(pair.ours, buffer);
    size_t got = 0, sent = (size_t)result;

    CHECK(wsf_outcome(result, BIG) == WSF_PARTIAL);
    CHECK(result > 0);
    CHECK(close(buffer.file) == 0);
    while (got < BIG) {
        const ssize_t size = recv(pair.theirs, received + got, BIG - got, 0);
        CHECK(size > 0);
        got += (size_t)size;
        const ssize_t more = send_one(pair.ours, (struct wsf_buffer){pattern + sent, BIG - sent, 0});
        sent += more > 0 ? (size_t)more : 0;
    }
    CHECK(memcmp(received, pattern, BIG) == 0);
    close_pair(pair);
}

static void full_socket_is_again(void)
{
    const struct pair pair = open_non_blocking(TIGHT);
    const struct wsf_buffer buffer = in_file(pattern, 30000);
    size_t taken = fill(pair.ours);
    ssize_t result;

    while ((result = send_one(pair.ours, buffer)) > 0) /* of a full TCP socket, there may be some room again */
        taken += (size_t)result;
    CHECK(wsf_outcome(result, buffer.size) == WSF_AGAIN);
    CHECK(receive_all(pair) == taken);
    CHECK(close(buffer.file) == 0);
    close_pair(pair);
}

static void failing_descriptors_do_not_stop_the_others(void)
{
    struct pair all[COUNT(motley)];
    const struct wsf_buffer buffers[] = {in_file(pattern, 7), in_file(pattern, BIG)};
    int descriptors[COUNT(motley)];
    uint32_t which[COUNT(motley)];

    open_motley(all, descriptors);
    for (size_t i = 0; i < COUNT(motley); i++) {
        CHECK(fcntl(all[i].ours, F_SETFL, O_NONBLOCK) == 0);
        which[i] = motley[i] == WSF_PARTIAL;
    }
    CHECK(wsf_send_many(descriptors, which, COUNT(motley), buffers, results) == 3);
    for (size_t i = 0; i < COUNT(motley); i++) {
        CHECK(wsf_outcome(results[i], buffers[which[i]].size) == motley[i]);
        if (results[i] > 0)
            check_received(all[i], pattern, (size_t)results[i]);
        close_pair(all[i]);
    }
    CHECK(close(buffers[0].file) == 0);
    CHECK(close(buffers[1].file) == 0);
}

/* ---- SIGPIPE ----------------------------------------------------------------------------------------------- */

static int is_pending(void)
{
    sigset_t signals;

    CHECK(sigpending(&signals) == 0);
    return sigismember(&signals, SIGPIPE);
}

static void set_blocked(int how)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    CHECK(pthread_sigmask(how, &signals, NULL) == 0);
}

static int is_blocked(void)
{
    sigset_t signals;

    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &signals) == 0);
    return sigismember(&signals, SIGPIPE);
}

/* The default action of the signal would end the test. */
static void pipe_is_without_sigpipe(void)
{
    const struct wsf_buffer buffer = in_file(pattern, PAGE);

    open_crowd(ROOMY);
    for (size_t i = 0; i < CROWD; i += 2)
        CHECK(shutdown(fds[i], SHUT_WR) == 0);
    for (int blocked = 0; blocked < 2; blocked++) {
        if (blocked)
            set_blocked(SIG_BLOCK);
        CHECK(wsf_send_many(fds, NULL, CROWD, &buffer, results) == CROWD / 2);
        for (size_t i = 0; i < CROWD; i++)
            CHECK(results[i] == (i % 2 ? PAGE : -EPIPE));
        CHECK(is_blocked() == blocked);
        CHECK(!is_pending());
    }
    set_blocked(SIG_UNBLOCK);
    CHECK(close(buffer.file) == 0);
    for (size_t i = 0; i < CROWD; i++)
        close_pair(pairs[i]);
}

static void sigpipe_of_somebody_else_is_left(void)
{
    static const struct timespec now = {0, 0};
    const struct wsf_buffer buffer = in_file(pattern, PAGE);
    const struct pair pair = open_non_blocking(ROOMY);
    sigset_t signals;

    CHECK(shutdown(pair.ours, SHUT_WR) == 0);
    set_blocked(SIG_BLOCK);
    CHECK(pthread_kill(pthread_self(), SIGPIPE) == 0);
    CHECK(send_one(pair.ours, buffer) == -EPIPE);
    CHECK(is_pending());
    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    CHECK(sigtimedwait(&signals, NULL, &now) == SIGPIPE);
    set_blocked(SIG_UNBLOCK);
    CHECK(close(buffer.file) == 0);
    close_pair(pair);
}

static void reset_is_told_as_by_send(void)
{
    const struct pair pair = tcp_pair(ROOMY);
    const struct wsf_buffer buffer = in_file(pattern, PAGE);

    CHECK(fcntl(pair.ours, F_SETFL, O_NONBLOCK) == 0);
    reset_by_peer(pair);
    CHECK(send_one(pair.ours, buffer) == -ECONNRESET);
    CHECK(send_one(pair.ours, buffer) == -EPIPE);
    CHECK(close(buffer.file) == 0);
    close(pair.ours);
}

/* The kernel sends a large frame in parts: the first one is taken, and has the peer reset the connection. */
static void end_in_the_middle_of_a_frame_is_without_sigpipe(void)
{
    const struct wsf_buffer buffer = in_file(pattern, BIG);

    for (int tries = 0; tries < 20; tries++) {
        const struct pair pair = tcp_pair(ROOMY);
        CHECK(fcntl(pair.ours, F_SETFL, O_NONBLOCK) == 0);
        CHECK(close(pair.theirs) == 0);
        const ssize_t sent = send_one(pair.ours, buffer);
        CHECK(sent > 0 || sent == -EPIPE || sent == -ECONNRESET);
        CHECK(!is_pending());
        close(pair.ours);
    }
    CHECK(close(buffer.file) == 0);
}

/* ---- Threads ----------------------------------------------------------------------------------------------- */

static void check_round(const struct wsf_buffer *buffers, const void *const *data)
{
    for (size_t i = 0; i < CROWD; i++) {
        const size_t size = buffers[i % 3].size;
        CHECK(results[i] == (ssize_t)size);
        CHECK(recv(pairs[i].theirs, received, size, MSG_WAITALL) == (ssize_t)size);
        CHECK(memcmp(received, data[i % 3], size) == 0);
    }
}

static void threads_send_from_one_file(void)
{
    const void *const data[] = {pattern, hello.data, pattern + 5};
    const size_t before = open_descriptors();

    open_crowd(ROOMY);
    wsf_set_threads(4, 1);
    for (int round = 0; round < 50; round++) {
        const struct wsf_buffer buffers[] = {in_file(pattern, 20000), hello, in_file(pattern + 5, 8192)};
        struct wsf_sends sends = {.fds = fds, .groups = groups, .buffers = buffers, .results = results};
        CHECK(wsf_begin(&sends));
        wsf_offer(CROWD / 2);
        CHECK(wsf_finish(&sends, CROWD) == CROWD);
        CHECK(close(buffers[0].file) == 0);
        CHECK(close(buffers[2].file) == 0);
        check_round(buffers, data);
    }
    for (size_t i = 0; i < CROWD; i++)
        close_pair(pairs[i]);
    CHECK(open_descriptors() == before);
}

static void detached_batch_sends_from_files(void)
{
    const void *const data[] = {pattern, hello.data, pattern + 5};

    open_crowd(ROOMY);
    wsf_set_threads(4, 1);
    for (int round = 0; round < 50; round++) {
        const struct wsf_buffer buffers[] = {in_file(pattern, 20000), hello, in_file(pattern + 5, 8192)};
        struct wsf_sends sends = {.fds = fds, .groups = groups, .buffers = buffers, .results = results};
        CHECK(wsf_begin(&sends));
        CHECK(wsf_detach(&sends, CROWD, -1));
        for (size_t i = CROWD - 1; i > 0; i -= 3)
            CHECK(wsf_claim(&sends, i) == (ssize_t)buffers[i % 3].size);
        CHECK(wsf_finish(&sends, CROWD) == CROWD);
        CHECK(close(buffers[0].file) == 0);
        CHECK(close(buffers[2].file) == 0);
        check_round(buffers, data);
    }
    for (size_t i = 0; i < CROWD; i++)
        close_pair(pairs[i]);
}

static void threads_get_no_sigpipe(void)
{
    const struct wsf_buffer buffers[] = {in_file(pattern, PAGE), in_file(pattern, 2 * PAGE), in_file(pattern, 1)};
    struct wsf_sends sends = {.fds = fds, .groups = groups, .buffers = buffers, .results = results};

    open_crowd(ROOMY);
    for (size_t i = 0; i < CROWD; i++)
        CHECK(shutdown(fds[i], SHUT_WR) == 0);
    wsf_set_threads(4, 1);
    for (int round = 0; round < 50; round++) {
        CHECK(wsf_begin(&sends));
        if (round % 2) {
            CHECK(wsf_detach(&sends, CROWD, -1));
            CHECK(wsf_claim(&sends, 0) == -EPIPE);
        }
        CHECK(wsf_finish(&sends, CROWD) == 0);
        for (size_t i = 0; i < CROWD; i++)
            CHECK(results[i] == -EPIPE);
    }
    for (size_t i = 0; i < CROWD; i++)
        close_pair(pairs[i]);
    for (size_t i = 0; i < COUNT(buffers); i++)
        CHECK(close(buffers[i].file) == 0);
}

int main(void)
{
    prepare();
    RUN(file_is_closed_by_exec_and_by_nobody_else);
    RUN(there_is_no_file_of_nothing);
    RUN(there_is_no_file_without_a_descriptor_and_none_is_left_behind);
    RUN(file_that_would_have_no_room_is_closed);
    RUN(file_is_never_descriptor_0);
    for (int tcp = 0; tcp < 2; tcp++) {
        open_pair = tcp ? tcp_pair : unix_pair;
        printf("-- %s\n", tcp ? "tcp" : "unix");
        RUN(every_size_arrives);
        RUN(groups_with_files_and_without_are_mixed);
        RUN(what_waits_stays_the_same_whatever_comes_after);
        RUN(rest_of_a_partial_write_follows);
        RUN(full_socket_is_again);
        RUN(failing_descriptors_do_not_stop_the_others);
        RUN(pipe_is_without_sigpipe);
        RUN(sigpipe_of_somebody_else_is_left);
        RUN(end_in_the_middle_of_a_frame_is_without_sigpipe);
        RUN(threads_send_from_one_file);
        RUN(detached_batch_sends_from_files);
        RUN(threads_get_no_sigpipe);
    }
    printf("-- the end of a connection\n");
    RUN(reset_is_told_as_by_send);
    return report();
}
