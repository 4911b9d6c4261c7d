/*
 * The sampler with no Python in sight: hand-computed answers, every status, then fuzzed rows.
 *
 * Buffers have their exact size, so that the address sanitizer sees a read one too far. The last line
 * printed is a digest of all ids and weights, which must not depend on how this was compiled. With
 * -DCOUNT_ALLOCATIONS and the linker's --wrap it also fails on any allocation while sampling.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "passes.h"
#include "sampler.h"

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            printf("line %d: %s does not hold\n", __LINE__, #condition);         \
            exit(1);                                                             \
        }                                                                        \
    } while (0)

static size_t n_allocations;

#ifdef COUNT_ALLOCATIONS
void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size) { n_allocations++; return __real_malloc(size); }
void *__wrap_calloc(size_t n, size_t size) { n_allocations++; return __real_calloc(n, size); }
void *__wrap_realloc(void *memory, size_t size) { n_allocations++; return __real_realloc(memory, size); }
void *__wrap_aligned_alloc(size_t a, size_t size) { n_allocations++; return __real_aligned_alloc(a, size); }
#endif

static ge_options plain(void) { return (ge_options){.temperature = 1, .top_p = 1, .repeat_penalty = 1, .n_top = -1}; }

static ge_sample sample(const float *logits, size_t n, const ge_row *row) {
    ge_state *state = ge_state_new(n);
    float *copy = malloc(n * sizeof *copy);
    memcpy(copy, logits, n * sizeof *copy);
    ge_sample out;
    memset(&out, 0, sizeof out);
    CHECK(ge_sample_rows(state, copy, row, 1, &out) == (out.status != GE_OK));
    CHECK(memcmp(copy, logits, n * sizeof *copy) == 0);
    free(copy);
    ge_state_free(state);
    return out;
}

static ge_sample sample_with(const float *logits, size_t n, ge_options options) {
    return sample(logits, n, &(ge_row){.options = &options});
}

/* ---- known answers ---- */

static void check_greedy(void) {
    ge_options o = plain();
    o.temperature = 0;
    CHECK(sample_with((float[]){1, 3, 3, 2}, 4, o).token_id == 1); /* the lowest id of a tie */
    CHECK(sample_with((float[]){-5}, 1, o).token_id == 0);
    o.repeat_penalty = 2, o.repeat_last_n = -1;
    const int32_t seen[] = {1, 1, 1};
    const ge_row row = {.options = &o, .token_ids = seen, .n_tokens = 3};
    CHECK(sample((float[]){1, 3, 1.6f, 0}, 4, &row).token_id == 2); /* 3 / 2 once, not three times */
    CHECK(sample((float[]){-1, -0.6f, -3, -4}, 4, &row).token_id == 0); /* -0.6 * 2 */
    o.repeat_last_n = 0;
    CHECK(sample((float[]){1, 3, 1.6f, 0}, 4, &row).token_id == 1);
    o.repeat_last_n = -1, o.repeat_penalty = 0.5;
    CHECK(sample((float[]){1, 3, 5, 0}, 4, &row).token_id == 1); /* below 1 rewards: 3 / 0.5 */
}

static void check_window(void) {
    ge_options o = plain();
    o.temperature = 0, o.repeat_penalty = 10, o.repeat_last_n = 2;
    const float logits[] = {4, 3, 2, 1};
    const int32_t prompt[] = {1, 0}, ids[] = {2, 1, 1};
    ge_row row = {.options = &o, .prompt_ids = prompt, .n_prompt = 2, .token_ids = ids, .n_tokens = 3};
    CHECK(sample(logits, 4, &row).token_id == 0); /* window 1 1 */
    row.n_tokens = 1;
    CHECK(sample(logits, 4, &row).token_id == 0); /* window 2: the prompt is not in it */
    o.penalize_prompt = 1;
    CHECK(sample(logits, 4, &row).token_id == 1); /* window 0 2 */
    o.repeat_last_n = -1;
    CHECK(sample(logits, 4, &row).token_id == 3); /* window 1 0 2 */
}

static void check_statuses(void) {
    const float logits[] = {1, 2, 3, 4};
    ge_options o = plain();
    CHECK(sample_with((float[]){1, NAN, 3, 4}, 4, o).status == GE_NOT_FINITE);
    CHECK(sample_with((float[]){1, NAN, 3, 4}, 4, o).token_id == 1);
    CHECK(sample_with((float[]){1, 2, INFINITY, 4}, 4, o).token_id == 2);
    CHECK(sample_with((float[]){-INFINITY, -INFINITY}, 2, o).status == GE_ALL_MASKED);
    const uint8_t none[4] = {0}, two[4] = {0x02};
    ge_row row = {.options = &o, .mask = none};
    CHECK(sample(logits, 4, &row).status == GE_ALL_MASKED);
    row.mask = two;
    CHECK(sample(logits, 4, &row).token_id == 1);
    CHECK(sample((float[]){1, 2, 3, NAN}, 4, &row).status == GE_NOT_FINITE); /* masked or not */
    const int32_t outside[] = {0, 4}, negative[] = {-1};
    o.repeat_penalty = 2, o.repeat_last_n = 64;
    CHECK(sample(logits, 4, &(ge_row){.options = &o, .token_ids = outside, .n_tokens = 2}).status == GE_BAD_ID);
    CHECK(sample(logits, 4, &(ge_row){.options = &o, .token_ids = outside, .n_tokens = 2}).token_id == 4);
    CHECK(sample(logits, 4, &(ge_row){.options = &o, .token_ids = negative, .n_tokens = 1}).token_id == -1);
    o = plain(), o.presence_penalty = 1;
    CHECK(sample(logits, 4, &(ge_row){.options = &o, .token_ids = outside, .n_tokens = 2}).status == GE_BAD_ID);
    const double bias[] = {NAN};
    o = plain(), o.n_bias = 1, o.bias = bias, o.bias_ids = outside;
    CHECK(sample_with(logits, 4, o).status == GE_BAD_OPTION);
    o.bias_ids = outside + 1;
    CHECK(sample_with(logits, 4, o).status == GE_BAD_ID);
    CHECK(ge_state_new(0) == NULL && ge_state_new(((size_t)1 << 30) + 1) == NULL);
    ge_state_free(NULL);
}

static void check_bad_options(void) {
    const float logits[] = {1, 2};
    const double bad[][2] = {{0, -1}, {0, NAN}, {0, INFINITY}, {1, 0}, {1, -0.5}, {1, 1.5}, {1, NAN}, {2, -0.1},
                             {2, 1},  {2, NAN}, {3, 0},        {3, -1}, {3, INFINITY}, {4, NAN}, {5, INFINITY}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ge_options o = plain();
        double *fields[] = {&o.temperature, &o.top_p, &o.min_p, &o.repeat_penalty, &o.presence_penalty,
                            &o.frequency_penalty};
        *fields[(int)bad[i][0]] = bad[i][1];
        CHECK(sample_with(logits, 2, o).status == GE_BAD_OPTION);
    }
    ge_options o = plain();
    o.repeat_last_n = -2;
    CHECK(sample_with(logits, 2, o).status == GE_BAD_OPTION);
    o = plain(), o.n_top = GE_MAX_TOP + 1;
    CHECK(sample_with(logits, 2, o).status == GE_BAD_OPTION);
}

static void check_uniform(void) {
    /* The outputs of SplitMix64 in state 1234567, as its author's program prints them. */
    CHECK(ge_splitmix64(1234567) == 6457827717110365317u);
    CHECK(ge_splitmix64(1234567 + 0x9E3779B97F4A7C15u) == 3203168211198807973u);
    double sum = 0;
    for (uint64_t t = 0; t < 100000; t++) {
        const double u = ge_uniform(42, t, (uint32_t)(t % 3));
        CHECK(u >= 0 && u < 1);
        sum += u;
    }
    CHECK(fabs(sum / 100000 - 0.5) < 0.005); /* 5.5 standard errors of 0.289 / sqrt(100000) */
}

static void check_weights(void) {
    enum { N = 1000 };
    float x[N], w[1024], sums[2];
    for (size_t i = 0; i < N; i++) x[i] = -(float)i * 0.0971f;
    ge_weights(x, N, 0, 1.25f, w, sums);
    double total = 0;
    for (size_t i = 0; i < N; i++) {
        const double exact = exp2((double)(x[i] * 1.25f));
        CHECK(x[i] * 1.25f < -125 ? w[i] == 0 : fabs(w[i] - exact) <= 3e-7 * exact);
        total += w[i];
    }
    CHECK(w[0] == 1 && w[N] == 0 && w[1023] == 0);
    CHECK(fabs(sums[0] + sums[1] - total) < 2e-6 * total);
}

/* ---- fuzz ---- */

static uint64_t fuzz_state;
static uint64_t next(void) { return ge_splitmix64(fuzz_state += 0x9E3779B97F4A7C15u); }
static size_t below(size_t n) { return (size_t)(next() % n); }
static double unit(void) { return (double)(next() >> 11) * 0x1p-53; }

static float fuzz_logit(size_t kind) {
    const float noise = (float)(unit() + unit() + unit() - 1.5);
    switch (kind) {
        case 0: return noise * 20;
        case 1: return noise * 0.1f;
        case 2: return 1.5f;
        case 3: return (float)below(4);
        case 4: return below(10) ? -INFINITY : noise * 8;
        case 5: return below(50) ? noise : noise * 3e38f;
        default: return noise * 200;
    }
}

static void fuzz_options(ge_options *o, size_t n) {
    static const double temperatures[] = {0, 1e-7, 0.1, 0.7, 1, 1.5, 100, 1e300}, tops[] = {1, 1, 0.95, 0.5, 0.1, 1e-9},
                        mins[] = {0, 0, 0.05, 0.99}, penalties[] = {1, 1.2, 0.5, 1e30, 1e-30};
    o->temperature = temperatures[below(8)];
    o->top_p = tops[below(6)];
    o->min_p = mins[below(4)];
    o->repeat_penalty = penalties[below(5)];
    o->presence_penalty = below(2) ? 0 : unit() - 0.5;
    o->frequency_penalty = below(2) ? 0 : unit() - 0.5;
    o->seed = next();
    o->top_k = below(2) ? 0 : 1 + below(n + 3);
    o->repeat_last_n = (int64_t)below(70) - 1;
    o->penalize_prompt = (int32_t)below(2);
    o->temperature_last = (int32_t)below(2);
    o->n_top = (int32_t)below(GE_MAX_TOP + 2) - 1;
    o->raw_logprobs = (int32_t)below(2);
}

static int32_t *fuzz_ids(size_t n_ids, size_t n_vocab) {
    int32_t *ids = malloc(n_ids * sizeof *ids + 1);
    for (size_t i = 0; i < n_ids; i++) ids[i] = below(3000) ? (int32_t)below(n_vocab) : (int32_t)next();
    return ids;
}

static void check_sample(const float *row, size_t n, const ge_row *in, const ge_sample *out) {
    if (out->status != GE_OK) return;
    CHECK(out->token_id >= 0 && (size_t)out->token_id < n);
    CHECK(row[out->token_id] > -INFINITY);
    CHECK(!in->mask || in->mask[out->token_id / 8] >> (out->token_id % 8) & 1);
    if (in->options->n_top < 0) return;
    CHECK(out->logprob <= 1e-6 && out->n_top <= in->options->n_top && (size_t)out->n_top <= n);
    for (int32_t i = 1; i < out->n_top; i++) CHECK(out->top_logprobs[i] <= out->top_logprobs[i - 1]);
}

/* Ids seldom show a last bit that differs: the bits of every weight and sum do. */
static uint64_t weights_digest(uint64_t digest, const float *row, size_t n, double temperature) {
    float *w = malloc(ge_padded(n) * sizeof *w), *sums = malloc(ge_n_blocks(n) * sizeof *sums);
    float max = -INFINITY;
    for (size_t i = 0; i < n; i++) max = row[i] > max ? row[i] : max;
    if (max > -INFINITY && max < INFINITY) {
        ge_weights(row, n, max, (float)(1 / temperature), w, sums);
        ge_sums_before(row, w, n, n / 2, sums);
        uint32_t bits;
        for (size_t i = 0; i < n; i++) memcpy(&bits, &w[i], sizeof bits), digest = digest * 31 + bits;
        for (size_t b = 0; b < ge_n_blocks(n); b++) memcpy(&bits, &sums[b], sizeof bits), digest = digest * 31 + bits;
    }
    free(w), free(sums);
    return digest;
}

/* Two rows of one fuzzed request, so that a row's leftovers would show in the next. */
static uint64_t fuzz_once(uint64_t digest) {
    static const size_t sizes[] = {1, 2, 31, 32, 33, 511, 512, 513, 1024, 1500, 5000};
    const size_t n = below(2) ? sizes[below(11)] : 1 + below(2000), kind = below(7);
    float *rows = malloc(2 * n * sizeof *rows), *copy = malloc(2 * n * sizeof *copy);
    for (size_t i = 0; i < 2 * n; i++) rows[i] = fuzz_logit(kind);
    if (below(20) == 0) rows[below(2 * n)] = below(2) ? NAN : INFINITY;
    memcpy(copy, rows, 2 * n * sizeof *rows);
    ge_options o = {0};
    fuzz_options(&o, n);
    o.n_bias = below(6);
    int32_t *bias_ids = fuzz_ids(o.n_bias, n);
    double *bias = malloc(o.n_bias * sizeof *bias + 1);
    for (size_t i = 0; i < o.n_bias; i++) bias[i] = below(3) ? unit() * 4 - 2 : -INFINITY;
    o.bias_ids = bias_ids, o.bias = bias;
    ge_row in = {.options = &o, .n_prompt = below(100), .n_tokens = below(200)};
    int32_t *prompt = fuzz_ids(in.n_prompt, n), *tokens = fuzz_ids(in.n_tokens, n);
    uint8_t *mask = malloc((n + 31) / 32 * 4);
    for (size_t i = 0; i < (n + 31) / 32 * 4; i++) mask[i] = (uint8_t)next();
    in.prompt_ids = prompt, in.token_ids = tokens, in.mask = below(3) ? NULL : mask;
    const ge_row both[] = {in, in};
    ge_state *state = ge_state_new(n);
    ge_sample out[2], again[2];
    const size_t before = n_allocations;
    ge_sample_rows(state, rows, both, 2, out);
    ge_sample_rows(state, rows, both, 2, again);
    CHECK(n_allocations == before);
    CHECK(memcmp(rows, copy, 2 * n * sizeof *rows) == 0);
    for (size_t r = 0; r < 2; r++) {
        check_sample(rows + r * n, n, &in, &out[r]);
        CHECK(out[r].status == again[r].status && out[r].token_id == again[r].token_id);
        digest = ge_splitmix64(digest ^ ((uint64_t)(uint32_t)out[r].token_id << 8) ^ (uint64_t)out[r].status);
    }
    if (out[0].status == GE_OK && o.temperature > 0) digest = weights_digest(digest, rows, n, o.temperature);
    ge_state_free(state);
    free(rows), free(copy), free(bias_ids), free(bias), free(prompt), free(tokens), free(mask);
    return digest;
}

int main(int n_arguments, char **arguments) {
    check_greedy();
    check_window();
    check_statuses();
    check_bad_options();
    check_uniform();
    check_weights();
    const long n_fuzzed = n_arguments > 1 ? atol(arguments[1]) : 2000;
    uint64_t digest = 0;
    for (long i = 0; i < n_fuzzed; i++) digest = fuzz_once(digest);
    if (n_arguments > 2) CHECK(n_allocations > 0); /* the count itself works */
    printf("%016llx\n", (unsigned long long)digest);
    return 0;
}
