/*
 * Linked with --wrap, so that this file stands between wsf and libc: it sees the system calls that large frames take,
 * and makes them fail as they do on older systems and where they are forbidden.
 */
#include "pair.h"

#include <fcntl.h>
#include <sys/sendfile.h>

static struct {
    int sends, sendfiles, creations; /* calls */
    int error;                       /* errno of what fails: */
    int sendfile_failures;           /* the first calls of sendfile(), */
    int creation_failures;           /* and of memfd_create() */
    unsigned flags;                  /* of the last file */
} kernel;

ssize_t __real_send(int fd, const void *data, size_t size, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t size, int flags);
ssize_t __real_sendfile(int fd, int file, off_t *offset, size_t size);
ssize_t __wrap_sendfile(int fd, int file, off_t *offset, size_t size);
int __real_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags);

ssize_t __wrap_send(int fd, const void *data, size_t size, int flags)
{
    kernel.sends++;
    return __real_send(fd, data, size, flags);
}

ssize_t __wrap_sendfile(int fd, int file, off_t *offset, size_t size)
{
    if (kernel.sendfiles++ < kernel.sendfile_failures) {
        errno = kernel.error;
        return -1;
    }
    return __real_sendfile(fd, file, offset, size);
}

int __wrap_memfd_create(const char *name, unsigned flags)
{
    kernel.flags = flags;
    if (kernel.creations++ < kernel.creation_failures) {
        errno = kernel.error;
        return -1;
    }
    return __real_memfd_create(name, flags);
}

static void fail_calls(int error, int sendfile_failures, int creation_failures)
{
    memset(&kernel, 0, sizeof kernel);
    kernel.error = error;
    kernel.sendfile_failures = sendfile_failures;
    kernel.creation_failures = creation_failures;
}

static struct pair open_non_blocking(void)
{
    const struct pair pair = unix_pair(ROOMY);

    CHECK(fcntl(pair.ours, F_SETFL, O_NONBLOCK) == 0);
    return pair;
}

static struct wsf_buffer in_file(size_t size)
{
    fail_calls(0, 0, 0);
    const struct wsf_buffer buffer = {pattern, size, wsf_open_file(pattern, size)};

    CHECK(buffer.file > 0);
    return buffer;
}

static void frame_with_a_file_is_one_call_for_each_descriptor(void)
{
    const struct pair a = open_non_blocking(), b = open_non_blocking();
    const struct wsf_buffer buffer = in_file(70000);
    ssize_t sent[2];

    CHECK(wsf_send_many((const int[]){a.ours, b.ours}, NULL, 2, &buffer, sent) == 2);
    CHECK(kernel.sendfiles == 2 && kernel.sends == 0);
    check_received(a, pattern, 70000);
    check_received(b, pattern, 70000);
    close_pair(a);
    close_pair(b);
    close(buffer.file);
}

static void interrupted_sendfile_is_repeated_then_given_up(void)
{
    const struct pair pair = open_non_blocking();
    const struct wsf_buffer buffer = in_file(5000);

    fail_calls(EINTR, 3, 0);
    CHECK(send_one(pair.ours, buffer) == 5000);
    CHECK(kernel.sendfiles == 3 + 1 && kernel.sends == 0);
    fail_calls(EINTR, INT_MAX, 0);
    CHECK(send_one(pair.ours, buffer) == -EINTR);
    CHECK(kernel.sendfiles > 2 && kernel.sendfiles < 100 && kernel.sends == 0); /* "a few times" */
    check_received(pair, pattern, 5000);
    close_pair(pair);
    close(buffer.file);
}

static void other_errors_are_passed_on_without_a_second_try(void)
{
    static const int errors[] = {EAGAIN, EBADF, ENOMEM, EPIPE, ECONNRESET, EIO, ETIMEDOUT};
    const struct pair pair = open_non_blocking();
    const struct wsf_buffer buffer = in_file(5000);

    for (size_t i = 0; i < COUNT(errors); i++) {
        fail_calls(errors[i], INT_MAX, 0);
        CHECK(send_one(pair.ours, buffer) == -errors[i]);
        CHECK(kernel.sendfiles == 1 && kernel.sends == 0);
    }
    close_pair(pair);
    close(buffer.file);
}

static void there_is_no_file_where_memfd_create_fails(void)
{
    static const int errors[] = {ENOSYS, EPERM, EACCES, EMFILE, ENFILE, ENOMEM};

    for (size_t i = 0; i < COUNT(errors); i++) {
        fail_calls(errors[i], 0, INT_MAX);
        CHECK(wsf_open_file(pattern, 5000) == 0);
        CHECK(kernel.creations == 1);
    }
    close(in_file(5000).file);
}

/* Linux before 6.3: the flag that later ones may insist on is an error. */
static void flags_of_a_file_are_those_that_the_kernel_knows(void)
{
    fail_calls(EINVAL, 0, 1);
    const int file = wsf_open_file(pattern, 5000);
    CHECK(file > 0 && kernel.creations == 2);
    close(file);
    const unsigned known = kernel.flags;
    close(in_file(5000).file);
    CHECK(kernel.creations == 1 && kernel.flags == known);
    fail_calls(EINVAL, 0, INT_MAX);
    CHECK(wsf_open_file(pattern, 5000) == 0);
    CHECK(kernel.creations == 1);
}

/* An error that send() has as well is that of the connection. */
static void error_of_one_connection_is_not_that_of_sendfile(void)
{
    const struct wsf_buffer buffer = in_file(5000);

    fail_calls(EINVAL, 1, 0);
    CHECK(send_one(-1, buffer) == -EBADF);
    CHECK(kernel.sendfiles == 1 && kernel.sends == 1);
    close(buffer.file);
    close(in_file(5000).file);
}

/* From here on, there are no more files in this process. */
static void send_does_it_where_sendfile_cannot(void)
{
    static const int errors[] = {EINVAL, ENOSYS, EOPNOTSUPP, EPERM};
    const struct wsf_buffer buffer = in_file(5000);

    for (size_t i = 0; i < COUNT(errors); i++) {
        const struct pair pair = open_non_blocking();
        fail_calls(errors[i], INT_MAX, 0);
        CHECK(send_one(pair.ours, buffer) == 5000);
        CHECK(kernel.sendfiles == 1 && kernel.sends == 1);
        check_received(pair, pattern, 5000);
        close_pair(pair);
        CHECK(wsf_open_file(pattern, 5000) == 0);
        CHECK(kernel.creations == 0);
    }
    close(buffer.file);
}

int main(void)
{
    prepare();
    RUN(frame_with_a_file_is_one_call_for_each_descriptor);
    RUN(interrupted_sendfile_is_repeated_then_given_up);
    RUN(other_errors_are_passed_on_without_a_second_try);
    RUN(there_is_no_file_where_memfd_create_fails);
    RUN(flags_of_a_file_are_those_that_the_kernel_knows);
    RUN(error_of_one_connection_is_not_that_of_sendfile);
    RUN(send_does_it_where_sendfile_cannot);
    return report();
}
