#include "select.h"

#include <math.h>
#include <string.h>

#include "passes.h"

/* Floats in the order of unsigned integers; -0 lies below +0, which comparing as floats repairs. */
static uint32_t key_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static float float_of_key(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/*
 * Return a bound that k to k + slack of x reach, or the k-th highest value itself where equal ones
 * leave no such bound. 1 <= k <= n; at most 32 passes over x, about 10 on real rows.
 */
static float bound_of_best(const float *x, size_t n, size_t k, size_t slack) {
    float low, high;
    ge_range(x, n, &low, &high);
    uint32_t enough = key_of(low), top = key_of(high); /* count(>= enough) >= k throughout */
    while (enough < top) {
        const uint32_t middle = enough + (top - enough + 1) / 2;
        const float bound = float_of_key(middle);
        const size_t count = ge_count_at_least(x, n, bound);
        if (count < k) {
            top = middle - 1;
        } else if (count <= k + slack) {
            return bound;
        } else {
            enough = middle;
        }
    }
    return float_of_key(enough);
}

/* Write what of x reaches bound, in the order of ids; only groups that do are looked at. Each candidate
 * is written and then counted or not: what is kept is unpredictable, so a branch would cost more. */
static size_t gather(const float *x, size_t n, float bound, const float *maxima, float *values, int32_t *ids) {
    size_t n_found = 0;
    for (size_t b = 0; b < ge_n_blocks(n); b++) {
        uint32_t hits[GE_GROUPS];
        size_t n_hits = 0;
        for (uint32_t g = 0; g < GE_GROUPS; g++) {
            hits[n_hits] = g;
            n_hits += maxima[b * GE_GROUPS + g] >= bound;
        }
        if (n_hits == 0) continue;
        for (size_t begin = b * GE_BLOCK; begin < (b + 1) * GE_BLOCK; begin += GE_GROUPS) {
            for (size_t h = 0; h < n_hits && begin + hits[h] < n; h++) {
                const size_t i = begin + hits[h];
                values[n_found] = x[i];
                ids[n_found] = (int32_t)i;
                n_found += x[i] >= bound;
            }
        }
    }
    return n_found;
}

/* Move what is above bound, and the first of its equals up to k in all, to the front, in order. */
static void keep_best(float *values, int32_t *ids, size_t n, size_t k, float bound) {
    size_t n_above = 0, n_kept = 0, n_equal = 0;
    for (size_t i = 0; i < n; i++) n_above += values[i] > bound;
    for (size_t i = 0; i < n; i++) {
        const size_t equal = values[i] == bound;
        const size_t keep = (values[i] > bound) | (equal & (n_equal < k - n_above));
        values[n_kept] = values[i];
        ids[n_kept] = ids[i];
        n_equal += equal;
        n_kept += keep;
    }
}

void ge_select(const float *x, size_t n, size_t k, const float *maxima, float *values, int32_t *ids) {
    const size_t n_groups = ge_n_blocks(n) * GE_GROUPS;
    /* k groups with a maximum above a bound hold k elements above it. */
    const float bound = k <= n_groups ? bound_of_best(maxima, n_groups, k, k / 4) : -INFINITY;
    const size_t n_found = gather(x, n, bound, maxima, values, ids);
    if (n_found > k) keep_best(values, ids, n_found, k, bound_of_best(values, n_found, k, 0));
}

size_t ge_first_of(const float *x, size_t n, float max, const float *maxima) {
    for (size_t b = 0; b < ge_n_blocks(n); b++) {
        size_t best = n;
        for (size_t g = 0; g < GE_GROUPS; g++) {
            if (maxima[b * GE_GROUPS + g] != max) continue;
            for (size_t i = b * GE_BLOCK + g; i < best && i < (b + 1) * GE_BLOCK; i += GE_GROUPS) {
                if (x[i] == max) best = i;
            }
        }
        if (best < n) return best;
    }
    return 0; /* not reached: some group has the maximum of x */
}
