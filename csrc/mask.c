#include "wsf.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#define WSF_X86 1
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

/*
 * Each level masks whole vectors and leaves the rest to the next smaller one. The width of a vector is a multiple of
 * the key's, so the key's phase is the same at the start of each.
 */

static uint32_t load_key(const uint8_t *key)
{
    uint32_t word;
    memcpy(&word, key, sizeof word);
    return word;
}

static void mask_scalar(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key)
{
    const uint64_t wide = (uint64_t)key << 32 | key;
    size_t i = 0;

    for (; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, src + i, 8); /* memcpy: any alignment, no aliasing trouble, one instruction */
        word ^= wide;
        memcpy(dst + i, &word, 8);
    }
    uint8_t octets[WSF_KEY_SIZE];
    memcpy(octets, &key, sizeof octets);
    for (; i < size; i++)
        dst[i] = src[i] ^ octets[i % WSF_KEY_SIZE];
}

#ifdef WSF_X86
__attribute__((target("sse2"))) static void mask_sse2(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key)
{
    const __m128i wide = _mm_set1_epi32((int)key);
    size_t i = 0;

    for (; i + 16 <= size; i += 16) {
        const __m128i vector = _mm_loadu_si128((const __m128i *)(const void *)(src + i));
        _mm_storeu_si128((__m128i *)(void *)(dst + i), _mm_xor_si128(vector, wide));
    }
    mask_scalar(dst + i, src + i, size - i, key);
}

__attribute__((target("avx2"))) static void mask_avx2(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key)
{
    const __m256i wide = _mm256_set1_epi32((int)key);
    size_t i = 0;

    /* Vectors that straddle cache lines cost a tenth of a long payload's time. The key's phase must not change. */
    const size_t unaligned = -(uintptr_t)dst % sizeof(__m256i);
    if (size >= 1024 && unaligned % WSF_KEY_SIZE == 0) {
        mask_scalar(dst, src, unaligned, key);
        i = unaligned;
    }
    for (; i + 128 <= size; i += 128) {
        const __m256i *from = (const __m256i *)(const void *)(src + i);
        __m256i *to = (__m256i *)(void *)(dst + i);
        const __m256i a = _mm256_loadu_si256(from), b = _mm256_loadu_si256(from + 1);
        const __m256i c = _mm256_loadu_si256(from + 2), d = _mm256_loadu_si256(from + 3);
        _mm256_storeu_si256(to, _mm256_xor_si256(a, wide));
        _mm256_storeu_si256(to + 1, _mm256_xor_si256(b, wide));
        _mm256_storeu_si256(to + 2, _mm256_xor_si256(c, wide));
        _mm256_storeu_si256(to + 3, _mm256_xor_si256(d, wide));
    }
    for (; i + 32 <= size; i += 32) {
        const __m256i vector = _mm256_loadu_si256((const __m256i *)(const void *)(src + i));
        _mm256_storeu_si256((__m256i *)(void *)(dst + i), _mm256_xor_si256(vector, wide));
    }
    /* gcc 12 forgets it before the tail call; all SSE code of the process would then run at a fraction of its speed. */
    _mm256_zeroupper();
    mask_sse2(dst + i, src + i, size - i, key);
}
#endif

#ifdef __ARM_NEON
static void mask_neon(uint8_t *dst, const uint8_t *src, size_t size, uint32_t key)
{
    const uint8x16_t wide = vreinterpretq_u8_u32(vdupq_n_u32(key));
    size_t i = 0;

    for (; i + 16 <= size; i += 16)
        vst1q_u8(dst + i, veorq_u8(vld1q_u8(src + i), wide));
    mask_scalar(dst + i, src + i, size - i, key);
}
#endif

struct mask_level {
    void (*mask)(uint8_t *, const uint8_t *, size_t, uint32_t);
    enum wsf_simd level;
};

static const struct mask_level scalar = {mask_scalar, WSF_SCALAR};
#ifdef WSF_X86
static const struct mask_level sse2 = {mask_sse2, WSF_SSE2}, avx2 = {mask_avx2, WSF_AVX2};
#endif
#ifdef __ARM_NEON
static const struct mask_level neon = {mask_neon, WSF_NEON};
#endif

/* NULL where this build or this processor lacks the level. */
static const struct mask_level *find_level(enum wsf_simd level)
{
    switch (level) {
    case WSF_SCALAR:
        return &scalar;
#ifdef WSF_X86
    case WSF_SSE2:
        return __builtin_cpu_supports("sse2") ? &sse2 : NULL;
    case WSF_AVX2:
        return __builtin_cpu_supports("avx2") ? &avx2 : NULL;
#endif
#ifdef __ARM_NEON
    case WSF_NEON:
        return &neon;
#endif
    default:
        return NULL;
    }
}

/* One pointer for both function and level, so that they always agree; to constants, so relaxed order is enough. */
static _Atomic(const struct mask_level *) chosen;

int wsf_mask_use(enum wsf_simd level)
{
    const struct mask_level *found = find_level(level);

    if (found == NULL)
        return -1;
    atomic_store_explicit(&chosen, found, memory_order_relaxed);
    return 0;
}

static const struct mask_level *choose(void)
{
    static const enum wsf_simd best_first[] = {WSF_NEON, WSF_AVX2, WSF_SSE2, WSF_SCALAR};
    const struct mask_level *best = NULL, *already = NULL;

    for (size_t i = 0; best == NULL; i++)
        best = find_level(best_first[i]);
    /* Only if nobody has chosen meanwhile: wsf_mask_use prevails. */
    return atomic_compare_exchange_strong(&chosen, &already, best) ? best : already;
}

static const struct mask_level *current(void)
{
    const struct mask_level *level = atomic_load_explicit(&chosen, memory_order_relaxed);
    return level != NULL ? level : choose();
}

enum wsf_simd wsf_mask_level(void)
{
    return current()->level;
}

void wsf_mask(uint8_t *dst, const uint8_t *src, size_t size, const uint8_t *key)
{
    if (size > 0) /* `src` may be NULL then, and even NULL + 0 is undefined in C */
        current()->mask(dst, src, size, load_key(key));
}
