/*
 * From a row of logits to a token id, without sorting the row.
 *
 * A row is n_vocab float32 logits of one position: finite, or -inf for an id that may not be drawn.
 * The filters run in this order, renormalised after each:
 *
 *   logit bias, constraint mask, repeat penalty, presence and frequency, temperature,
 *   top-k, top-p, min-p, draw
 *
 * or, with options.temperature_last, with the temperature between min-p and the draw. Ranking is by
 * logit, equal ones by lower id. An adjusted logit is computed in double, rounded to float once, and
 * kept within +-FLT_MAX, so that another implementation can be equal to the bit.
 *
 * The draw of token t uses uniform(seed, t), a hash: there is no generator state, and rows can be
 * sampled in any order and any number of times. Ids do not depend on compiler or processor as long
 * as the compiler does not contract a*b+c (-ffp-contract=off) and keeps IEEE rules (no -ffast-math).
 *
 * Nothing here allocates after ge_state_new, prints, keeps global state, or knows llama.cpp. A state
 * serves one thread at a time.
 */
#ifndef GE_SAMPLER_H
#define GE_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin. From here to the end mark the header is read by build_native.py: no preprocessor. */

enum ge_status {
    GE_OK = 0,
    GE_BAD_OPTION = 1, /* an option outside the range written beside it */
    GE_ALL_MASKED = 2, /* no id is left: every logit is -inf after bias and mask */
    GE_NOT_FINITE = 3, /* NaN or +inf in the row; ge_sample.token_id is the first such id */
    GE_BAD_ID = 4      /* a bias, prompt or token id outside 0..n_vocab-1; ge_sample.token_id is it */
};

enum { GE_MAX_TOP = 64 };

/* How one request is sampled. Only read; the arrays are the caller's and must outlive the calls. */
typedef struct ge_options {
    double temperature;       /* >= 0, finite; below 1e-7 is greedy: highest logit, lowest id on a tie */
    double top_p;             /* in (0, 1]; 1 is off */
    double min_p;             /* in [0, 1); 0 is off */
    double repeat_penalty;    /* > 0, finite; 1 is off */
    double presence_penalty;  /* finite; subtracted once from each generated id */
    double frequency_penalty; /* finite; subtracted once per occurrence */
    uint64_t seed;
    size_t top_k;             /* 0 is off */
    int64_t repeat_last_n;    /* window of the repeat penalty; 0 is off, -1 is all */
    int32_t penalize_prompt;  /* not 0: the window reaches back into the prompt */
    int32_t temperature_last; /* not 0: truncate at temperature 1, temper what is left */
    int32_t n_top;            /* log-probabilities: -1 none, 0 the token's own, n <= GE_MAX_TOP the best too */
    int32_t raw_logprobs;     /* not 0: of the row as given, at temperature 1 */
    size_t n_bias;
    const int32_t *bias_ids; /* (n_bias,) an id given twice counts twice */
    const double *bias;      /* (n_bias,) finite, or -inf to forbid */
} ge_options;

/* One row of a batch, apart from its logits. Pointers may be NULL where their length is 0. */
typedef struct ge_row {
    const ge_options *options;
    const int32_t *prompt_ids; /* (n_prompt,) only read when the options penalize the prompt */
    size_t n_prompt;
    const int32_t *token_ids; /* (n_tokens,) generated so far; n_tokens is the index of the draw */
    size_t n_tokens;
    const uint8_t *mask; /* ((n_vocab + 31) / 32 * 4,) bit i of byte i/8 set: id allowed; NULL: all */
} ge_row;

/* What came out of a row. Everything but status and token_id is undefined unless status is GE_OK. */
typedef struct ge_sample {
    int32_t status;   /* an enum ge_status */
    int32_t token_id; /* drawn, or the id that an error is about; -1 when there is none */
    double logprob;   /* natural logarithm; undefined when n_top is -1 */
    int32_t n_top;    /* entries below, best first; fewer than asked when fewer ids are possible */
    int32_t top_ids[64];
    double top_logprobs[64];
} ge_sample;

typedef struct ge_state ge_state;

/* Return scratch for rows of n_vocab logits (1..2^30), about 60 bytes each, or NULL without memory. */
ge_state *ge_state_new(size_t n_vocab);

/* Free a state; NULL is fine. */
void ge_state_free(ge_state *state);

/*
 * Sample n_rows rows, each apart from the others.
 *
 * logits is (n_rows, n_vocab), rows and samples are (n_rows,). Returns how many rows have a status
 * other than GE_OK. The logits of penalised and biased ids are replaced during the call and put back
 * before it returns, error or not: a caller sees its rows unchanged, but they must be writable and
 * read by nobody else meanwhile.
 *
 * Log-probabilities are of the penalised, tempered distribution before truncation; greedy rows, which
 * have no such distribution, are tempered with 1.
 */
size_t ge_sample_rows(ge_state *state, float *logits, const ge_row *rows, size_t n_rows, ge_sample *samples);

/*
 * The SplitMix64 finaliser of x + 0x9E3779B97F4A7C15: the next output of a generator in state x.
 * Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
 */
uint64_t ge_splitmix64(uint64_t x);

/*
 * Return the uniform of round `round` of draw `index`, in [0, 1), a multiple of 2^-53: output `index`
 * of SplitMix64 started in state splitmix64(seed), hashed once more per later round.
 */
double ge_uniform(uint64_t seed, uint64_t index, uint32_t round);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif
