/*
 * Linked with --wrap=send, so that this file stands between wsf and libc: it sees the system calls, and makes them
 * fail in ways that cannot be had from a real socket. A non-blocking send is never interrupted on Linux.
 */
#include "pair.h"

static struct {
    int calls;    /* of send() */
    int flags;    /* of the last one */
    int fd;       /* of the last one */
    int tries;    /* calls in a row for this fd */
    int error;    /* errno of the failures wanted */
    int failures; /* how many of the first tries for each descriptor fail */
    int only;     /* and for this descriptor alone, unless it is 0 */
    int order[8]; /* the descriptors of the first calls */
} kernel;

ssize_t __real_send(int fd, const void *data, size_t size, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t size, int flags);

ssize_t __wrap_send(int fd, const void *data, size_t size, int flags)
{
    kernel.tries = kernel.calls > 0 && kernel.fd == fd ? kernel.tries + 1 : 1;
    kernel.fd = fd;
    kernel.flags = flags;
    if (kernel.calls < (int)COUNT(kernel.order))
        kernel.order[kernel.calls] = fd;
    kernel.calls++;
    if (kernel.tries <= kernel.failures && (kernel.only == 0 || kernel.only == fd)) {
        errno = kernel.error;
        return -1;
    }
    return __real_send(fd, data, size, flags);
}

static void count_calls(void)
{
    memset(&kernel, 0, sizeof kernel);
}

static void fail_calls(int error, int failures, int only)
{
    count_calls();
    kernel.error = error;
    kernel.failures = failures;
    kernel.only = only;
}

static void each_descriptor_gets_one_non_blocking_call_in_order(void)
{
    const struct pair a = unix_pair(ROOMY), b = unix_pair(ROOMY);
    const int fds[] = {b.ours, a.ours, b.ours, -1, a.ours};
    ssize_t results[COUNT(fds)];

    count_calls();
    CHECK(wsf_send_many(fds, NULL, COUNT(fds), &hello, results) == 4);
    CHECK(kernel.calls == COUNT(fds));
    CHECK(memcmp(kernel.order, fds, sizeof fds) == 0);
    CHECK((kernel.flags & MSG_DONTWAIT) != 0);
#ifdef MSG_NOSIGNAL
    CHECK((kernel.flags & MSG_NOSIGNAL) != 0);
#endif
    close_pair(a);
    close_pair(b);
}

static void empty_buffer_is_no_call(void)
{
    const struct wsf_buffer empty = {NULL, 0, 0};

    count_calls();
    CHECK(send_one(-1, empty) == 0);
    CHECK(kernel.calls == 0);
}

static void masked_frame_is_one_call(void)
{
    static const uint8_t keys[] = {1, 2, 3, 4, 5, 6, 7, 8};
    const struct pair a = unix_pair(ROOMY), b = unix_pair(ROOMY);
    const int fds[] = {b.ours, a.ours};
    uint8_t scratch[WSF_MAX_HEADER + 7];
    ssize_t results[COUNT(fds)];

    count_calls();
    CHECK(wsf_send_masked(fds, keys, NULL, COUNT(fds), (const uint8_t[]){0x81}, &hello, scratch, results) ==
          COUNT(fds));
    CHECK(kernel.calls == COUNT(fds));
    CHECK(memcmp(kernel.order, fds, sizeof fds) == 0);
    CHECK((kernel.flags & MSG_DONTWAIT) != 0);
    close_pair(a);
    close_pair(b);
}

static void interrupted_send_is_repeated_for_each_descriptor(void)
{
    const struct pair a = unix_pair(ROOMY), b = unix_pair(ROOMY);
    const int fds[] = {a.ours, b.ours};
    ssize_t results[COUNT(fds)];

    fail_calls(EINTR, 3, 0);
    CHECK(wsf_send_many(fds, NULL, COUNT(fds), &hello, results) == COUNT(fds));
    CHECK(results[0] == 7 && results[1] == 7);
    CHECK(kernel.calls == 2 * (3 + 1));
    check_received(a, hello.data, hello.size);
    check_received(b, hello.data, hello.size);
    close_pair(a);
    close_pair(b);
}

static void send_that_is_always_interrupted_is_given_up(void)
{
    const struct pair a = unix_pair(ROOMY), b = unix_pair(ROOMY);
    const int fds[] = {a.ours, b.ours};
    ssize_t results[COUNT(fds)];

    fail_calls(EINTR, INT_MAX, a.ours);
    CHECK(wsf_send_many(fds, NULL, COUNT(fds), &hello, results) == 1);
    CHECK(results[0] == -EINTR && results[1] == 7);
    CHECK(wsf_outcome(results[0], hello.size) == WSF_INTERRUPTED);
    CHECK(kernel.calls > 2 && kernel.calls < 100); /* "a few times" */
    check_received(a, "", 0);
    close_pair(a);
    close_pair(b);
}

static void masked_send_that_is_interrupted_is_repeated_then_given_up(void)
{
    static const uint8_t keys[] = {1, 2, 3, 4, 5, 6, 7, 8};
    const struct pair a = unix_pair(ROOMY), b = unix_pair(ROOMY);
    const int fds[] = {a.ours, b.ours};
    uint8_t scratch[WSF_MAX_HEADER + 7];
    ssize_t results[COUNT(fds)];

    fail_calls(EINTR, 3, 0);
    CHECK(wsf_send_masked(fds, keys, NULL, COUNT(fds), (const uint8_t[]){0x81}, &hello, scratch, results) ==
          COUNT(fds));
    fail_calls(EINTR, INT_MAX, a.ours);
    CHECK(wsf_send_masked(fds, keys, NULL, COUNT(fds), (const uint8_t[]){0x81}, &hello, scratch, results) == 1);
    CHECK(results[0] == -EINTR && results[1] == 6 + 7);
    close_pair(a);
    close_pair(b);
}

static void would_block_is_reported_as_again(void)
{
    const struct pair pair = unix_pair(ROOMY);

    fail_calls(EWOULDBLOCK, 1, 0);
    CHECK(send_one(pair.ours, hello) == -EAGAIN);
    CHECK(kernel.calls == 1);
    close_pair(pair);
}

static void other_errors_are_passed_on_without_a_second_try(void)
{
    static const int errors[] = {EAGAIN, ENOBUFS, ENOMEM, EPIPE, ECONNRESET, ETIMEDOUT, EPERM};
    const struct pair pair = unix_pair(ROOMY);

    for (size_t i = 0; i < COUNT(errors); i++) {
        fail_calls(errors[i], INT_MAX, 0);
        CHECK(send_one(pair.ours, hello) == -errors[i]);
        CHECK(kernel.calls == 1);
    }
    close_pair(pair);
}

static void error_after_interruptions_is_the_result(void)
{
    fail_calls(EINTR, 2, 0);
    CHECK(send_one(-1, hello) == -EBADF);
    CHECK(kernel.calls == 3);
}

int main(void)
{
    prepare();
    RUN(each_descriptor_gets_one_non_blocking_call_in_order);
    RUN(empty_buffer_is_no_call);
    RUN(masked_frame_is_one_call);
    RUN(interrupted_send_is_repeated_for_each_descriptor);
    RUN(send_that_is_always_interrupted_is_given_up);
    RUN(masked_send_that_is_interrupted_is_repeated_then_given_up);
    RUN(would_block_is_reported_as_again);
    RUN(other_errors_are_passed_on_without_a_second_try);
    RUN(error_after_interruptions_is_the_result);
    return report();
}
