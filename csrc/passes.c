#include "passes.h"

#include <math.h>
#include <string.h>

/* Indices are size_t (under -fwrapv signed ones stop the vectoriser), reductions are arrays of running
 * values, and choices are made with integer masks: what GCC, Clang and MSVC all turn into vectors. */

/* As well as the flag; GCC has no such pragma. */
#if defined(_MSC_VER) && !defined(__clang__)
#pragma fp_contract(off)
#elif defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

/* One build for every x86-64, the loops chosen at load time. musl has no ifunc, sanitizers break it. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(GE_NO_CLONES)
#if __GNUC__ >= 12
#define GE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
#endif
#ifndef GE_CLONES
#define GE_CLONES
#endif

#if defined(__GNUC__) || defined(__clang__)
#define GE_INLINE static inline __attribute__((always_inline))
#else
#define GE_INLINE static __forceinline
#endif

enum { LANES = GE_GROUPS };

GE_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

GE_INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* All ones or zero, to select by & instead of by a branch. */
GE_INLINE uint32_t mask_of(int condition) { return (uint32_t)0 - (uint32_t)condition; }

/* The last block of a row, padded with -inf; n is not a multiple of GE_BLOCK. */
GE_INLINE void copy_tail(const float *x, size_t n, float *tail) {
    const size_t begin = n - n % GE_BLOCK;
    for (size_t j = n - begin; j < GE_BLOCK; j++) tail[j] = -INFINITY;
    memcpy(tail, x + begin, (n - begin) * sizeof *x);
}

/* In one order for every instruction set: halves, until one is left. */
GE_INLINE float sum_lanes(const float *lanes) {
    float half[LANES / 2];
    for (size_t j = 0; j < 16; j++) half[j] = lanes[j] + lanes[j + 16];
    for (size_t j = 0; j < 8; j++) half[j] += half[j + 8];
    for (size_t j = 0; j < 4; j++) half[j] += half[j + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

/* ---- maxima ---- */

GE_INLINE void range_of(const float *x, size_t n, float *low, float *high) {
    float least[LANES], most[LANES];
    for (size_t j = 0; j < LANES; j++) least[j] = most[j] = x[0];
    for (size_t i = 0; i < n / LANES; i++) {
        for (size_t j = 0; j < LANES; j++) {
            const float value = x[i * LANES + j];
            least[j] = value < least[j] ? value : least[j];
            most[j] = value > most[j] ? value : most[j];
        }
    }
    for (size_t i = n - n % LANES; i < n; i++) {
        least[0] = x[i] < least[0] ? x[i] : least[0];
        most[0] = x[i] > most[0] ? x[i] : most[0];
    }
    *low = least[0], *high = most[0];
    for (size_t j = 1; j < LANES; j++) {
        *low = least[j] < *low ? least[j] : *low;
        *high = most[j] > *high ? most[j] : *high;
    }
}

/* A NaN in x sticks in sums: one addition, where comparing each element costs two operations. */
GE_INLINE void block_maxima(const float *x, float *maxima, float *sums) {
    float top[LANES], sum[LANES];
    for (size_t j = 0; j < LANES; j++) top[j] = -INFINITY, sum[j] = sums[j];
    for (size_t row = 0; row < GE_DEPTH; row++) {
        const float *values = x + row * LANES;
        for (size_t j = 0; j < LANES; j++) {
            top[j] = values[j] > top[j] ? values[j] : top[j];
            sum[j] += values[j];
        }
    }
    for (size_t j = 0; j < LANES; j++) maxima[j] = top[j], sums[j] = sum[j];
}

GE_CLONES int ge_group_maxima(const float *restrict x, size_t n, float *restrict maxima, float *max) {
    const size_t n_full = n / GE_BLOCK, n_blocks = ge_n_blocks(n);
    float sums[LANES] = {0};
    for (size_t b = 0; b < n_full; b++) block_maxima(x + b * GE_BLOCK, maxima + b * GE_GROUPS, sums);
    if (n_full < n_blocks) {
        float tail[GE_BLOCK];
        copy_tail(x, n, tail);
        block_maxima(tail, maxima + n_full * GE_GROUPS, sums);
    }
    float low;
    range_of(maxima, n_blocks * GE_GROUPS, &low, max);
    const float sum = sum_lanes(sums);
    if (sum == sum) return 0;
    /* Or the sum overflowed to +inf and met a -inf: look at each. */
    uint32_t nan = 0;
    for (size_t i = 0; i < n; i++) nan |= mask_of(x[i] != x[i]);
    return nan != 0;
}

GE_CLONES void ge_range(const float *x, size_t n, float *low, float *high) { range_of(x, n, low, high); }

/* ---- mask ---- */

GE_CLONES void ge_apply_mask(const float *restrict x, const uint8_t *mask, size_t n, float *restrict out) {
    const uint32_t forbidden = bits_of(-INFINITY);
    uint32_t bit[32];
    for (uint32_t j = 0; j < 32; j++) bit[j] = 1u << j;
    for (size_t i = 0; i + 32 <= n; i += 32) {
        uint32_t word; /* little-endian, as every target is */
        memcpy(&word, mask + i / 8, sizeof word);
        for (size_t j = 0; j < 32; j++) {
            const uint32_t keep = mask_of((word & bit[j]) != 0);
            out[i + j] = float_of((bits_of(x[i + j]) & keep) | (forbidden & ~keep));
        }
    }
    for (size_t i = n - n % 32; i < n; i++) out[i] = mask[i / 8] >> (i % 8) & 1 ? x[i] : -INFINITY;
}

/* ---- weights ---- */

/*
 * 2^t for t in [-125, 0], 0 below. Adding 1.5 * 2^23 rounds t to an integer that then stands in the low
 * bits; the fraction, in [-0.5, 0.5], goes through a polynomial whose constant term is 1, so 2^0 is 1.
 */
GE_INLINE float exp2_negative(float t) {
    const float shift = 12582912.0f;
    const float rounded = t + shift;
    const float f = t - (rounded - shift);
    float p = 1.326472727e-3f;
    p = p * f + 9.671512733e-3f;
    p = p * f + 5.550733744e-2f;
    p = p * f + 2.402224208e-1f;
    p = p * f + 6.931469776e-1f;
    p = p * f + 1.0f;
    const uint32_t scaled = bits_of(p) + (bits_of(rounded) << 23);
    return float_of(scaled & mask_of(t >= -125.0f));
}

GE_INLINE float block_weights(const float *x, float max, float scale, float *w) {
    for (size_t j = 0; j < GE_BLOCK; j++) w[j] = exp2_negative((x[j] - max) * scale);
    float lanes[LANES] = {0};
    for (size_t row = 0; row < GE_BLOCK / LANES; row++) {
        for (size_t j = 0; j < LANES; j++) lanes[j] += w[row * LANES + j];
    }
    return sum_lanes(lanes);
}

GE_CLONES void ge_weights(const float *restrict x, size_t n, float max, float scale, float *restrict w,
                          float *restrict sums) {
    const size_t n_full = n / GE_BLOCK;
    for (size_t b = 0; b < n_full; b++) sums[b] = block_weights(x + b * GE_BLOCK, max, scale, w + b * GE_BLOCK);
    if (n % GE_BLOCK != 0) {
        float tail[GE_BLOCK];
        copy_tail(x, n, tail);
        sums[n_full] = block_weights(tail, max, scale, w + n_full * GE_BLOCK);
    }
}

/* ---- what ranks before a pivot ---- */

GE_INLINE float block_above(const float *x, const float *w, float value, int or_equal) {
    float lanes[LANES] = {0};
    for (size_t row = 0; row < GE_BLOCK / LANES; row++) {
        for (size_t j = 0; j < LANES; j++) {
            const float v = x[row * LANES + j];
            const uint32_t before = or_equal ? mask_of(v >= value) : mask_of(v > value);
            lanes[j] += float_of(bits_of(w[row * LANES + j]) & before);
        }
    }
    return sum_lanes(lanes);
}

/* The pivot's own block: equal ones before it count, equal ones after it do not. */
GE_INLINE float block_around(const float *x, const float *w, float value, size_t pivot) {
    float raised[GE_BLOCK];
    for (uint32_t j = 0; j < GE_BLOCK; j++) {
        const uint32_t tie = mask_of(x[j] == value) & mask_of(j < (uint32_t)pivot);
        raised[j] = float_of((bits_of(INFINITY) & tie) | (bits_of(x[j]) & ~tie));
    }
    return block_above(raised, w, value, 0);
}

GE_CLONES void ge_sums_before(const float *restrict x, const float *restrict w, size_t n, size_t pivot,
                              float *restrict sums) {
    const float value = x[pivot];
    const size_t own = pivot / GE_BLOCK, n_full = n / GE_BLOCK;
    for (size_t b = 0; b < own; b++) sums[b] = block_above(x + b * GE_BLOCK, w + b * GE_BLOCK, value, 1);
    for (size_t b = own + 1; b < n_full; b++) sums[b] = block_above(x + b * GE_BLOCK, w + b * GE_BLOCK, value, 0);
    if (own < n_full) sums[own] = block_around(x + own * GE_BLOCK, w + own * GE_BLOCK, value, pivot % GE_BLOCK);
    if (n % GE_BLOCK != 0) {
        float tail[GE_BLOCK];
        copy_tail(x, n, tail);
        const float *weights = w + n_full * GE_BLOCK;
        sums[n_full] = own == n_full ? block_around(tail, weights, value, pivot % GE_BLOCK)
                                     : block_above(tail, weights, value, 0);
    }
}

/* ---- counting ---- */

GE_CLONES size_t ge_count_at_least(const float *x, size_t n, float bound) {
    uint32_t counts[LANES] = {0};
    for (size_t i = 0; i < n / LANES; i++) {
        for (size_t j = 0; j < LANES; j++) counts[j] += mask_of(x[i * LANES + j] >= bound) & 1u;
    }
    size_t total = 0;
    for (size_t j = 0; j < LANES; j++) total += counts[j];
    for (size_t i = n - n % LANES; i < n; i++) total += x[i] >= bound;
    return total;
}
