#include "pair.h"

#include <pthread.h>
#include <stdatomic.h>

enum { WORKERS = 6, ROUNDS = 50, SHARED = 1000 };
static atomic_int ready;

struct worker {
    struct pair pair;
    uint8_t number;
};

static void check_message(int fd, const uint8_t *message, size_t size)
{
    uint8_t got[SHARED + WSF_MAX_HEADER];

    CHECK(recv(fd, got, size, MSG_WAITALL) == (ssize_t)size);
    CHECK(memcmp(got, message, size) == 0);
}

static void *work(void *argument)
{
    const struct worker *worker = argument;
    const struct pair pair = worker->pair;
    const int fds[] = {pair.ours, pair.ours};
    const uint32_t groups[] = {0, 1};
    const struct wsf_buffer shared[] = {{pattern, SHARED, 0}, hello};
    const uint8_t key[] = {worker->number, 2, 3, 4};
    uint8_t frame[8 + SHARED], scratch[WSF_MAX_HEADER + SHARED], data[SHARED];
    ssize_t results[2];

    frame[0] = 0x82;
    frame[1] = 0x80 | 126;
    frame[2] = SHARED >> 8;
    frame[3] = SHARED & 0xff;
    memcpy(frame + 4, key, 4);
    for (size_t i = 0; i < SHARED; i++)
        frame[8 + i] = pattern[i] ^ key[i % 4];

    atomic_fetch_add(&ready, 1);
    while (atomic_load(&ready) < WORKERS)
        ;
    for (int round = 0; round < ROUNDS; round++) {
        switch ((worker->number + round) % 3) { /* so that different functions come first, and meet */
        case 0:
            CHECK(wsf_send_many(fds, groups, 2, shared, results) == 2);
            check_message(pair.theirs, pattern, SHARED);
            check_message(pair.theirs, hello.data, hello.size);
            break;
        case 1:
            CHECK(wsf_send_masked(&pair.ours, key, NULL, 1, (const uint8_t[]){0x82}, shared, scratch, results) == 1);
            check_message(pair.theirs, frame, sizeof frame);
            break;
        default:
            memcpy(data, pattern, SHARED);
            wsf_mask(data, data, SHARED, key);
            CHECK(memcmp(data, frame + 8, SHARED) == 0);
        }
    }
    return NULL;
}

static void threads_send_and_mask_at_once(void)
{
    struct worker workers[WORKERS];
    pthread_t threads[WORKERS];

    atomic_store(&ready, 0);
    for (uint8_t i = 0; i < WORKERS; i++) {
        workers[i] = (struct worker){open_pair(ROOMY), i};
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < WORKERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        close_pair(workers[i].pair);
    }
}

int main(void)
{
    prepare();
    RUN(threads_send_and_mask_at_once);
    return report();
}
