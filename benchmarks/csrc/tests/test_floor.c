#include "bench.h"
#include "pair.h"

#include <fcntl.h>

enum { CROWD = 100 };

#ifdef __linux__
/* Send by sendfile(), without blocking. */
static size_t send_by_file(const int *fds, size_t n, const void *data, size_t size, size_t *taken)
{
    FILE *const file = tmpfile();
    size_t complete;

    CHECK(file != NULL);
    CHECK(fwrite(data, 1, size, file) == size);
    CHECK(fflush(file) == 0);
    for (size_t i = 0; i < n; i++)
        CHECK(fds[i] < 0 || fcntl(fds[i], F_SETFL, O_NONBLOCK) == 0);
    signal(SIGPIPE, SIG_IGN);
    complete = bench_send_file(fds, n, fileno(file), size, taken);
    signal(SIGPIPE, SIG_DFL);
    fclose(file);
    return complete;
}
#endif

static size_t (*send_all)(const int *, size_t, const void *, size_t, size_t *) = bench_send;

static void all_get_the_data(void)
{
    struct pair pairs[CROWD];
    int fds[CROWD];
    size_t taken = 77;

    for (int i = 0; i < CROWD; i++) {
        pairs[i] = open_pair(ROOMY);
        fds[i] = pairs[i].ours;
    }
    CHECK(send_all(fds, CROWD, hello.data, hello.size, &taken) == CROWD);
    CHECK(taken == 77);
    for (int i = 0; i < CROWD; i++) {
        check_received(pairs[i], hello.data, hello.size);
        close_pair(pairs[i]);
    }
}

static void descriptor_that_is_given_twice_gets_it_twice(void)
{
    const struct pair pair = open_pair(ROOMY);
    size_t taken;

    CHECK(send_all((const int[]){pair.ours, pair.ours}, 2, "ab", 2, &taken) == 2);
    check_received(pair, "abab", 4);
    close_pair(pair);
}

static void it_stops_at_each_socket_in_trouble_and_tells_what_that_took(void)
{
    const size_t size = ROOMY / 4;
    struct pair pairs[COUNT(motley)];
    int fds[COUNT(motley)];

    open_motley(pairs, fds);
    for (size_t at = 0; at < COUNT(motley); at++) {
        size_t taken;
        const size_t complete = send_all(fds + at, COUNT(motley) - at, pattern, size, &taken);
        for (size_t i = at; i < at + complete; i++)
            CHECK(motley[i] == WSF_SENT);
        at += complete;
        if (at == COUNT(motley))
            break;
        CHECK(motley[at] == WSF_PARTIAL ? taken > 0 && taken < size : motley[at] != WSF_SENT && taken == 0);
    }
    for (size_t i = 0; i < COUNT(motley); i++) {
        if (motley[i] == WSF_SENT)
            check_received(pairs[i], pattern, size);
        close_pair(pairs[i]);
    }
}

static void no_descriptors_are_no_work(void)
{
    size_t taken;

    CHECK(send_all(NULL, 0, hello.data, hello.size, &taken) == 0);
}

static void run_all(const char *how, int first)
{
    for (int tcp = first; tcp < 2; tcp++) {
        open_pair = tcp ? tcp_pair : unix_pair;
        printf("-- %s, %s\n", how, tcp ? "tcp" : "unix");
        RUN(all_get_the_data);
        RUN(descriptor_that_is_given_twice_gets_it_twice);
        RUN(it_stops_at_each_socket_in_trouble_and_tells_what_that_took);
    }
    printf("-- %s\n", how);
    RUN(no_descriptors_are_no_work);
}

int main(void)
{
    prepare();
    run_all("send", 0);
#ifdef __linux__
    send_all = send_by_file;
    run_all("sendfile", 1); /* a tight socket of AF_UNIX takes all: shared pages do not count there */
#endif
    return report();
}
