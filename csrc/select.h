/* The k best of a row without sorting it: group maxima bound the k-th best from below. */
#ifndef GE_SELECT_H
#define GE_SELECT_H

#include <stddef.h>
#include <stdint.h>

/*
 * Write the k highest of x, (n,), equal ones by lower id, to values and ids in the order of their ids.
 *
 * 1 <= k <= n. maxima is what ge_group_maxima made of x. values and ids, (n,), are also scratch: what
 * stands behind the k results is undefined. Work is O(n / 16 + k) unless many are equal or k > n / 16.
 */
void ge_select(const float *x, size_t n, size_t k, const float *maxima, float *values, int32_t *ids);

/* Return the lowest id whose value is max; maxima is what ge_group_maxima made of x. */
size_t ge_first_of(const float *x, size_t n, float max, const float *maxima);

#endif
