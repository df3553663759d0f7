/*
 * check.h: what the tests of wsf share: CHECK, a runner that prints one line for each test, and memory with fences.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Not assert: the builds under test define NDEBUG. */
#define CHECK(condition) ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, #condition))

static inline _Noreturn void check_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "\n%s:%d: CHECK(%s) failed\n", file, line, condition);
    fflush(stdout);
    _Exit(1); /* two threads may fail at once, and exit() must not be called twice */
}

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- Runner ------------------------------------------------------------------------------------------------ */

static int tests_run = 0;

#define RUN(test) run_test(#test, test)

static inline void run_test(const char *name, void (*test)(void))
{
    printf("%s ... ", name);
    fflush(stdout); /* the name must be out before a fence is hit */
    test();
    puts("ok");
    tests_run++;
}

static inline int report(void)
{
    printf("%d tests passed\n", tests_run);
    return 0;
}

/* ---- Fences ------------------------------------------------------------------------------------------------ */

static inline uint8_t *fenced(size_t size, int at_the_end)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t body = (size + page - 1) / page * page;
    uint8_t *base = mmap(NULL, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(base != MAP_FAILED);
    CHECK(body == 0 || mprotect(base + page, body, PROT_READ | PROT_WRITE) == 0);
    return base + page + (at_the_end ? body - size : 0);
}

/* `size` octets, zeroed and never freed; to touch the one after them is a crash. */
static inline uint8_t *fence_after(size_t size)
{
    return fenced(size, 1);
}

/* `size` octets, zeroed and never freed; to touch the one before them is a crash. */
static inline uint8_t *fence_before(size_t size)
{
    return fenced(size, 0);
}

#endif
