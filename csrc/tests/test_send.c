#include "pair.h"

#include <fcntl.h>

enum { CROWD = 100 };

/* ---- Outcomes ---------------------------------------------------------------------------------------------- */

static void outcome_names_each_result(void)
{
    CHECK(wsf_outcome(0, 0) == WSF_SENT);
    CHECK(wsf_outcome(1, 1) == WSF_SENT);
    CHECK(wsf_outcome(BIG, BIG) == WSF_SENT);
    CHECK(wsf_outcome(0, 1) == WSF_PARTIAL);
    CHECK(wsf_outcome(BIG - 1, BIG) == WSF_PARTIAL);
    CHECK(wsf_outcome(-EAGAIN, 1) == WSF_AGAIN);
    CHECK(wsf_outcome(-EINTR, 1) == WSF_INTERRUPTED);
    CHECK(wsf_outcome(-EPIPE, 1) == WSF_PIPE);
    CHECK(wsf_outcome(-ECONNRESET, 1) == WSF_RESET);
}

static void outcome_of_any_other_errno_is_failed(void)
{
    static const int errors[] = {EBADF, ENOTSOCK, ENOTCONN, ENOBUFS, ENOMEM, EMSGSIZE, ETIMEDOUT, EFAULT, EPERM};

    CHECK(EPERM == 1); /* so that a result of -1 is an errno like any other */
    for (size_t i = 0; i < COUNT(errors); i++) {
        CHECK(wsf_outcome(-errors[i], 1) == WSF_FAILED);
        CHECK(wsf_outcome(-errors[i], (size_t)-errors[i]) == WSF_FAILED);
    }
}

/* ---- Over AF_UNIX and over TCP ----------------------------------------------------------------------------- */

static void whole_buffer_is_sent(void)
{
    const struct pair pair = open_pair(ROOMY);
    const ssize_t result = send_one(pair.ours, hello);

    CHECK(result == 7);
    CHECK(wsf_outcome(result, hello.size) == WSF_SENT);
    check_received(pair, hello.data, hello.size);
    close_pair(pair);
}

static void one_buffer_reaches_every_descriptor(void)
{
    struct pair pairs[CROWD];
    int fds[CROWD];
    ssize_t results[CROWD + 1];
    const struct wsf_buffer buffer = {pattern, 1000, 0};

    for (size_t i = 0; i < CROWD; i++) {
        pairs[i] = open_pair(ROOMY);
        fds[i] = pairs[i].ours;
    }
    results[CROWD] = 4711;
    CHECK(wsf_send_many(fds, NULL, CROWD, &buffer, results) == CROWD);
    CHECK(results[CROWD] == 4711);
    for (size_t i = 0; i < CROWD; i++) {
        CHECK(results[i] == 1000);
        check_received(pairs[i], pattern, 1000);
        close_pair(pairs[i]);
    }
}

static void groups_choose_the_buffer_of_each_descriptor(void)
{
    const struct wsf_buffer buffers[] = {{"zero", 4, 0}, {"the first", 9, 0}, {NULL, 0, 0}, {pattern, 20000, 0}};
    const uint32_t groups[] = {1, 3, 0, 2, 3, 1};
    struct pair pairs[COUNT(groups)];
    int fds[COUNT(groups)];
    ssize_t results[COUNT(groups)];

    for (size_t i = 0; i < COUNT(groups); i++) {
        pairs[i] = open_pair(ROOMY);
        fds[i] = pairs[i].ours;
    }
    CHECK(wsf_send_many(fds, groups, COUNT(groups), buffers, results) == COUNT(groups));
    for (size_t i = 0; i < COUNT(groups); i++) {
        const struct wsf_buffer *buffer = &buffers[groups[i]];
        CHECK(results[i] == (ssize_t)buffer->size);
        CHECK(receive_all(pairs[i]) == buffer->size);
        CHECK(buffer->size == 0 || memcmp(received, buffer->data, buffer->size) == 0);
        close_pair(pairs[i]);
    }
}

static void same_descriptor_twice_is_sent_to_in_order(void)
{
    const struct pair pair = open_pair(ROOMY);
    const struct wsf_buffer buffers[] = {{"second", 6, 0}, {"first ", 6, 0}};
    ssize_t results[2];

    CHECK(wsf_send_many((const int[]){pair.ours, pair.ours}, (const uint32_t[]){1, 0}, 2, buffers, results) == 2);
    check_received(pair, "first second", 12);
    close_pair(pair);
}

static void no_descriptors_are_no_work(void)
{
    CHECK(wsf_send_many(NULL, NULL, 0, &hello, NULL) == 0);
    CHECK(wsf_send_masked(NULL, NULL, NULL, 0, (const uint8_t[]){0x81}, &hello, NULL, NULL) == 0);
}

static void empty_buffer_is_sent_to_any_descriptor(void)
{
    const struct pair pair = open_pair(ROOMY);
    const struct wsf_buffer empty = {NULL, 0, 0};
    ssize_t results[2] = {4711, 4711};

    CHECK(shutdown(pair.ours, SHUT_WR) == 0);
    CHECK(wsf_send_many((const int[]){-1, pair.ours}, NULL, 2, &empty, results) == 2);
    CHECK(results[0] == 0 && results[1] == 0);
    CHECK(wsf_outcome(results[0], 0) == WSF_SENT);
    close_pair(pair);
}

static void partial_write_is_the_number_of_octets_taken(void)
{
    const struct pair pair = open_pair(TIGHT);
    const struct wsf_buffer big = {pattern, BIG, 0};
    const ssize_t result = send_one(pair.ours, big);

    CHECK(result > 0 && result < BIG);
    CHECK(wsf_outcome(result, big.size) == WSF_PARTIAL);
    check_received(pair, pattern, (size_t)result);
    close_pair(pair);
}

static void full_socket_in_blocking_mode_is_not_waited_for(void)
{
    const struct pair pair = open_pair(TIGHT);

    CHECK((fcntl(pair.ours, F_GETFL) & O_NONBLOCK) == 0);
    const size_t taken = fill(pair.ours);
    CHECK((fcntl(pair.ours, F_GETFL) & O_NONBLOCK) == 0);
    CHECK(taken > 0);
    CHECK(receive_all(pair) == taken);
    close_pair(pair);
}

static void full_socket_in_non_blocking_mode_is_again(void)
{
    const struct pair pair = open_pair(TIGHT);

    CHECK(fcntl(pair.ours, F_SETFL, fcntl(pair.ours, F_GETFL) | O_NONBLOCK) == 0);
    const size_t taken = fill(pair.ours);
    CHECK(taken > 0);
    CHECK(receive_all(pair) == taken);
    close_pair(pair);
}

static void own_shutdown_is_a_pipe_without_sigpipe(void)
{
    const struct pair pair = open_pair(ROOMY);

    CHECK(shutdown(pair.ours, SHUT_WR) == 0);
    for (int i = 0; i < 2; i++) {
        const ssize_t result = send_one(pair.ours, hello);
        CHECK(result == -EPIPE);
        CHECK(wsf_outcome(result, hello.size) == WSF_PIPE);
    }
    close_pair(pair);
}

static void bad_descriptors_are_failures(void)
{
    const int file = open("/dev/null", O_WRONLY);

    CHECK(file >= 0);
    CHECK(send_one(file, hello) == -ENOTSOCK);
    CHECK(wsf_outcome(-ENOTSOCK, hello.size) == WSF_FAILED);
    CHECK(close(file) == 0);
    CHECK(send_one(file, hello) == -EBADF);
    CHECK(send_one(-1, hello) == -EBADF);
    CHECK(wsf_outcome(-EBADF, hello.size) == WSF_FAILED);
}

static void failing_descriptors_do_not_stop_the_others(void)
{
    const struct wsf_buffer buffers[] = {hello, {pattern, BIG, 0}};
    struct pair pairs[COUNT(motley)];
    int fds[COUNT(motley)];
    uint32_t groups[COUNT(motley)];
    ssize_t results[COUNT(motley)];

    open_motley(pairs, fds);
    for (size_t i = 0; i < COUNT(motley); i++)
        groups[i] = motley[i] == WSF_PARTIAL;
    CHECK(wsf_send_many(fds, groups, COUNT(motley), buffers, results) == 3);
    for (size_t i = 0; i < COUNT(motley); i++) {
        CHECK(wsf_outcome(results[i], buffers[groups[i]].size) == motley[i]);
        if (results[i] > 0)
            check_received(pairs[i], buffers[groups[i]].data, (size_t)results[i]);
        close_pair(pairs[i]);
    }
}

/* ---- The end of a connection ------------------------------------------------------------------------------- */

static void unix_peer_that_closed_is_a_pipe(void)
{
    for (int unread = 0; unread < 2; unread++) {
        const struct pair pair = unix_pair(ROOMY);
        if (unread)
            CHECK(send_one(pair.ours, hello) == 7);
        CHECK(close(pair.theirs) == 0);
        for (int i = 0; i < 2; i++)
            CHECK(send_one(pair.ours, hello) == -EPIPE);
        close(pair.ours);
    }
}

static void tcp_reset_is_a_reset_once_and_then_a_pipe(void)
{
    const struct pair pair = tcp_pair(ROOMY);

    reset_by_peer(pair);
    const ssize_t result = send_one(pair.ours, hello);
#ifdef __linux__ /* the pending error of the socket is reported once and cleared */
    CHECK(result == -ECONNRESET);
    CHECK(wsf_outcome(result, hello.size) == WSF_RESET);
#else
    CHECK(result == -ECONNRESET || result == -EPIPE);
#endif
    CHECK(send_one(pair.ours, hello) == -EPIPE);
    close(pair.ours);
}

static void tcp_reset_after_the_peers_fin_is_a_pipe(void)
{
    const struct pair pair = tcp_pair(ROOMY);

    CHECK(shutdown(pair.theirs, SHUT_WR) == 0);
    CHECK(recv(pair.ours, received, 1, 0) == 0); /* the FIN is here: CLOSE_WAIT */
    reset_by_peer(pair);
    const ssize_t result = send_one(pair.ours, hello);
#ifdef __linux__ /* tcp_reset() makes it EPIPE in CLOSE_WAIT */
    CHECK(result == -EPIPE);
#else
    CHECK(result == -ECONNRESET || result == -EPIPE);
#endif
    close(pair.ours);
}

static void tcp_peer_that_closed_takes_one_send_and_then_is_a_pipe(void)
{
    const struct pair pair = tcp_pair(ROOMY);

    CHECK(close(pair.theirs) == 0);
    CHECK(recv(pair.ours, received, 1, 0) == 0);
    CHECK(send_one(pair.ours, hello) == 7); /* the kernel cannot know yet; the answer is a reset */
    wait_for_the_end(pair.ours);
    const ssize_t result = send_one(pair.ours, hello);
#ifdef __linux__
    CHECK(result == -EPIPE);
#else
    CHECK(result == -ECONNRESET || result == -EPIPE);
#endif
    close(pair.ours);
}

int main(void)
{
    prepare();
    RUN(outcome_names_each_result);
    RUN(outcome_of_any_other_errno_is_failed);
    for (int tcp = 0; tcp < 2; tcp++) {
        open_pair = tcp ? tcp_pair : unix_pair;
        printf("-- %s\n", tcp ? "tcp" : "unix");
        RUN(whole_buffer_is_sent);
        RUN(one_buffer_reaches_every_descriptor);
        RUN(groups_choose_the_buffer_of_each_descriptor);
        RUN(same_descriptor_twice_is_sent_to_in_order);
        RUN(no_descriptors_are_no_work);
        RUN(empty_buffer_is_sent_to_any_descriptor);
        RUN(partial_write_is_the_number_of_octets_taken);
        RUN(full_socket_in_blocking_mode_is_not_waited_for);
        RUN(full_socket_in_non_blocking_mode_is_again);
        RUN(own_shutdown_is_a_pipe_without_sigpipe);
        RUN(bad_descriptors_are_failures);
        RUN(failing_descriptors_do_not_stop_the_others);
    }
    printf("-- the end of a connection\n");
    RUN(unix_peer_that_closed_is_a_pipe);
    RUN(tcp_reset_is_a_reset_once_and_then_a_pipe);
    RUN(tcp_reset_after_the_peers_fin_is_a_pipe);
    RUN(tcp_peer_that_closed_takes_one_send_and_then_is_a_pipe);
    return report();
}
