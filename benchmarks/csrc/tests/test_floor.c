#include "bench.h"
#include "pair.h"

enum { CROWD = 100 };

static void all_get_the_data(void)
{
    struct pair pairs[CROWD];
    int fds[CROWD];

    for (int i = 0; i < CROWD; i++) {
        pairs[i] = open_pair(ROOMY);
        fds[i] = pairs[i].ours;
    }
    CHECK(bench_send(fds, CROWD, hello.data, hello.size) == CROWD);
    for (int i = 0; i < CROWD; i++) {
        check_received(pairs[i], hello.data, hello.size);
        close_pair(pairs[i]);
    }
}

static void descriptor_that_is_given_twice_gets_it_twice(void)
{
    const struct pair pair = open_pair(ROOMY);

    CHECK(bench_send((const int[]){pair.ours, pair.ours}, 2, "ab", 2) == 2);
    check_received(pair, "abab", 4);
    close_pair(pair);
}

static void sockets_in_trouble_neither_count_nor_stop_it(void)
{
    struct pair pairs[COUNT(motley)];
    int fds[COUNT(motley)];

    open_motley(pairs, fds); /* three of them take all of it, and one a part */
    CHECK(bench_send(fds, COUNT(motley), pattern, ROOMY / 4) == 3);
    for (size_t i = 0; i < COUNT(motley); i++) {
        if (motley[i] == WSF_SENT)
            check_received(pairs[i], pattern, ROOMY / 4);
        close_pair(pairs[i]);
    }
}

static void no_descriptors_are_no_work(void)
{
    CHECK(bench_send(NULL, 0, hello.data, hello.size) == 0);
}

int main(void)
{
    prepare();
    for (int tcp = 0; tcp < 2; tcp++) {
        open_pair = tcp ? tcp_pair : unix_pair;
        printf("-- %s\n", tcp ? "tcp" : "unix");
        RUN(all_get_the_data);
        RUN(descriptor_that_is_given_twice_gets_it_twice);
        RUN(sockets_in_trouble_neither_count_nor_stop_it);
    }
    printf("-- either\n");
    RUN(no_descriptors_are_no_work);
    return report();
}
