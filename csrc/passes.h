/*
 * The loops over a whole row: everything else in csrc touches few elements.
 *
 * Rows are cut into blocks of GE_BLOCK; the last may be shorter and is treated as padded with -inf.
 * Sums are float32 in 32 running values a block, added up in one fixed order, so that every
 * instruction set gives the same bits.
 */
#ifndef GE_PASSES_H
#define GE_PASSES_H

#include <stddef.h>
#include <stdint.h>

enum {
    GE_BLOCK = 512,
    GE_GROUPS = 32,                    /* groups of a block; group g holds its elements g, g + 32, ... */
    GE_DEPTH = GE_BLOCK / GE_GROUPS    /* elements of a group */
};

/* Blocks of a row of n, and its length when padded to whole blocks. */
static inline size_t ge_n_blocks(size_t n) { return (n + GE_BLOCK - 1) / GE_BLOCK; }
static inline size_t ge_padded(size_t n) { return ge_n_blocks(n) * GE_BLOCK; }

/*
 * Write the maxima of the groups of each block to maxima, (n_blocks * GE_GROUPS,), -inf for an empty
 * one, and the highest to max. Returns 0, or 1 when x holds a NaN (what it wrote is then worthless).
 */
int ge_group_maxima(const float *x, size_t n, float *maxima, float *max);

/* Copy x to out, (n,), with -inf where the bit of mask is clear. */
void ge_apply_mask(const float *x, const uint8_t *mask, size_t n, float *out);

/*
 * Write w_i = 2^((x_i - max) * scale), within 3e-7 of it, to w, (ge_padded(n),), 0 below 2^-125 and
 * beyond n; and the sum of each block to sums, (n_blocks,). x must hold no NaN and nothing above max.
 */
void ge_weights(const float *x, size_t n, float max, float scale, float *w, float *sums);

/*
 * Write to sums, (n_blocks,), what each block holds of the weights w, (ge_padded(n),), of the elements
 * that rank before element `pivot`: x greater, or equal and earlier. sums may have been w's own.
 */
void ge_sums_before(const float *x, const float *w, size_t n, size_t pivot, float *sums);

/* Write the lowest and the highest of x, (n,), n >= 1, no NaN. */
void ge_range(const float *x, size_t n, float *low, float *high);

/* Return how many of x, (n,), are >= bound. */
size_t ge_count_at_least(const float *x, size_t n, float bound);

#endif
