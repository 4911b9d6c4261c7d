#include "sampler.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "passes.h"
#include "select.h"

/* An id that a bias or a penalty touches, with what it does to it. */
typedef struct {
    int32_t id;
    int32_t repeated; /* in the window of the repeat penalty */
    double bias;
    double count; /* occurrences among the generated ids */
    float before; /* the logit as given, to be put back */
} touched_id;

struct ge_state {
    size_t n_vocab;
    size_t n_touched;
    touched_id *touched; /* (n_vocab,) */
    uint32_t *place;     /* (n_vocab,) 1 + index in touched, 0 for none; all 0 between rows */
    float *maxima;       /* (n_blocks * GE_GROUPS,) of the row being sampled */
    float *masked;       /* (n_vocab,) the row under the constraint mask */
    float *kept;         /* (n_vocab,) top-k: logits, in the order of ids */
    int32_t *kept_ids;   /* (n_vocab,) */
    float *weights;      /* (padded,) at the temperature */
    float *weights_one;  /* (padded,) at temperature 1, when the temperature comes last */
    float *sums;         /* (n_blocks,) of weights, or of what is left of them */
    float *sums_one;     /* (n_blocks,) */
    double mass;         /* of the weights of the whole row at mass_temperature; unknown when that is 0 */
    double mass_temperature;
};

static const double GREEDY_BELOW = 1e-7;
static const double LOG2_E = 1.4426950408889634074;

/* ---- state ---- */

/* Hand out the next `size` bytes of an arena at *cursor, aligned for vectors. */
static void *carve(char *arena, size_t *cursor, size_t size) {
    void *part = arena ? arena + *cursor : NULL;
    *cursor += (size + 63) / 64 * 64;
    return part;
}

static size_t lay_out(ge_state *state, char *arena) {
    const size_t n = state->n_vocab, padded = ge_padded(n), n_blocks = ge_n_blocks(n);
    size_t cursor = 0;
    state->maxima = carve(arena, &cursor, n_blocks * GE_GROUPS * sizeof(float));
    state->weights = carve(arena, &cursor, padded * sizeof(float));
    state->weights_one = carve(arena, &cursor, padded * sizeof(float));
    state->masked = carve(arena, &cursor, n * sizeof(float));
    state->kept = carve(arena, &cursor, n * sizeof(float));
    state->kept_ids = carve(arena, &cursor, n * sizeof(int32_t));
    state->sums = carve(arena, &cursor, n_blocks * sizeof(float));
    state->sums_one = carve(arena, &cursor, n_blocks * sizeof(float));
    state->place = carve(arena, &cursor, n * sizeof(uint32_t));
    state->touched = carve(arena, &cursor, n * sizeof(touched_id));
    return cursor;
}

ge_state *ge_state_new(size_t n_vocab) {
    if (n_vocab == 0 || n_vocab > (size_t)1 << 30) return NULL;
    ge_state plan = {.n_vocab = n_vocab};
    const size_t head = (sizeof plan + 63) / 64 * 64;
    char *memory = calloc(1, head + lay_out(&plan, NULL) + 63);
    if (!memory) return NULL;
    ge_state *state = (ge_state *)memory;
    *state = plan;
    lay_out(state, (char *)(((uintptr_t)memory + head + 63) / 64 * 64));
    return state;
}

void ge_state_free(ge_state *state) { free(state); }

/* ---- randomness ---- */

static const uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

uint64_t ge_splitmix64(uint64_t x) {
    x += GOLDEN;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

double ge_uniform(uint64_t seed, uint64_t index, uint32_t round) {
    uint64_t bits = ge_splitmix64(ge_splitmix64(seed) + index * GOLDEN);
    for (uint32_t r = 0; r < round; r++) bits = ge_splitmix64(bits);
    return (double)(bits >> 11) * 0x1p-53;
}

/* ---- bias and penalties ---- */

static int options_are_good(const ge_options *o) {
    return o->temperature >= 0 && o->temperature <= DBL_MAX && o->top_p > 0 && o->top_p <= 1 && o->min_p >= 0 &&
           o->min_p < 1 && o->repeat_penalty > 0 && o->repeat_penalty <= DBL_MAX &&
           fabs(o->presence_penalty) <= DBL_MAX && fabs(o->frequency_penalty) <= DBL_MAX &&
           o->repeat_last_n >= -1 && o->n_top >= -1 && o->n_top <= GE_MAX_TOP;
}

/* The entry of an id, made when it has none; NULL for an id outside the vocabulary. */
static touched_id *touch(ge_state *state, int32_t id) {
    if (id < 0 || (size_t)id >= state->n_vocab) return NULL;
    if (state->place[id] == 0) {
        state->touched[state->n_touched++] = (touched_id){.id = id};
        state->place[id] = (uint32_t)state->n_touched;
    }
    return &state->touched[state->place[id] - 1];
}

static int collect_bias(ge_state *state, const ge_options *o, int32_t *culprit) {
    for (size_t i = 0; i < o->n_bias; i++) {
        touched_id *entry = touch(state, o->bias_ids[i]);
        *culprit = o->bias_ids[i];
        if (!entry) return GE_BAD_ID;
        if (!(o->bias[i] <= DBL_MAX)) return GE_BAD_OPTION;
        entry->bias += o->bias[i];
    }
    return GE_OK;
}

static int collect_repeated(ge_state *state, const int32_t *ids, size_t n, int32_t *culprit) {
    for (size_t i = 0; i < n; i++) {
        touched_id *entry = touch(state, ids[i]);
        *culprit = ids[i];
        if (!entry) return GE_BAD_ID;
        entry->repeated = 1;
    }
    return GE_OK;
}

/* Fill the table of touched ids. The window is the end of prompt and generated ids laid end to end. */
static int collect(ge_state *state, const ge_row *row, int32_t *culprit) {
    const ge_options *o = row->options;
    int status = collect_bias(state, o, culprit);
    if (status == GE_OK && o->repeat_penalty != 1.0 && o->repeat_last_n != 0) {
        const size_t window = o->repeat_last_n < 0 ? SIZE_MAX : (size_t)o->repeat_last_n;
        const size_t n_own = row->n_tokens < window ? row->n_tokens : window;
        const size_t n_prompt = o->penalize_prompt ? row->n_prompt : 0;
        const size_t n_before = n_prompt < window - n_own ? n_prompt : window - n_own;
        if (n_before) status = collect_repeated(state, row->prompt_ids + (n_prompt - n_before), n_before, culprit);
        if (status == GE_OK && n_own) {
            status = collect_repeated(state, row->token_ids + (row->n_tokens - n_own), n_own, culprit);
        }
    }
    if (o->presence_penalty == 0 && o->frequency_penalty == 0) return status;
    for (size_t i = 0; status == GE_OK && i < row->n_tokens; i++) {
        touched_id *entry = touch(state, row->token_ids[i]);
        *culprit = row->token_ids[i];
        if (!entry) return GE_BAD_ID;
        entry->count += 1;
    }
    return status;
}

static float adjusted(float logit, const touched_id *entry, const ge_options *o) {
    double value = (double)logit + entry->bias;
    if (entry->repeated) value = value > 0 ? value / o->repeat_penalty : value * o->repeat_penalty;
    if (entry->count > 0) value = value - entry->count * o->frequency_penalty - o->presence_penalty;
    /* A finite logit under a finite bias stays finite; NaN and infinities pass through to the check. */
    if (isfinite(logit) && entry->bias > -INFINITY) {
        value = value > FLT_MAX ? FLT_MAX : value < -FLT_MAX ? -FLT_MAX : value;
    }
    return (float)value;
}

static void adjust(ge_state *state, float *x, const ge_options *o) {
    for (size_t i = 0; i < state->n_touched; i++) {
        touched_id *entry = &state->touched[i];
        entry->before = x[entry->id];
        x[entry->id] = adjusted(entry->before, entry, o);
    }
}

static void put_back(ge_state *state, float *x) {
    for (size_t i = 0; i < state->n_touched; i++) x[state->touched[i].id] = state->touched[i].before;
}

static void forget_touched(ge_state *state) {
    for (size_t i = 0; i < state->n_touched; i++) state->place[state->touched[i].id] = 0;
    state->n_touched = 0;
}

/* ---- draw ---- */

/* What a draw chooses from, in the order of ids. */
typedef struct {
    const float *x;     /* (n,) logits */
    const int32_t *ids; /* (n,), NULL when element i is id i */
    size_t n;
    float max;
    size_t pivot; /* only what ranks before it is left; n for all */
} candidates;

static double total(const float *sums, size_t n) {
    double sum = 0;
    for (size_t b = 0; b < ge_n_blocks(n); b++) sum += sums[b];
    return sum;
}

/* Return the first element at which the running sum of what is left of the weights exceeds target. */
static size_t pick(const candidates *c, const float *weights, const float *sums, double target) {
    const float value = c->pivot < c->n ? c->x[c->pivot] : -INFINITY;
    double before = 0;
    size_t last = 0; /* rounding may leave the sum just short of target: then the last element */
    for (size_t b = 0; b < ge_n_blocks(c->n); b++) {
        if (sums[b] > 0 && before + sums[b] > target) {
            const size_t end = (b + 1) * GE_BLOCK < c->n ? (b + 1) * GE_BLOCK : c->n;
            double sum = before;
            for (size_t i = b * GE_BLOCK; i < end; i++) {
                const int left = c->x[i] > value || (c->x[i] == value && i < c->pivot);
                if (!left || weights[i] == 0) continue;
                sum += weights[i];
                last = i;
                if (sum > target) return i;
            }
            return last;
        }
        before += sums[b];
    }
    return last;
}

/*
 * Draw by rejection. The filters keep a prefix of the ranking, so one pivot decides: when a picked
 * element is outside, so is all that ranks behind it, and the rest is drawn from again.
 */
static size_t draw(ge_state *state, candidates *c, const ge_options *o, uint64_t index) {
    const double cut_temperature = o->temperature_last ? 1 : o->temperature;
    const double lowest_gap = o->min_p > 0 ? cut_temperature * log(o->min_p) : -INFINITY;
    ge_weights(c->x, c->n, c->max, (float)(LOG2_E / o->temperature), state->weights, state->sums);
    double mass = total(state->sums, c->n);
    if (c->n == state->n_vocab) state->mass = mass, state->mass_temperature = o->temperature;
    const float *cut = state->weights;
    float *cut_sums = state->sums;
    double cut_mass = mass;
    if (cut_temperature != o->temperature && o->top_p < 1) {
        ge_weights(c->x, c->n, c->max, (float)LOG2_E, state->weights_one, state->sums_one);
        cut = state->weights_one, cut_sums = state->sums_one, cut_mass = total(cut_sums, c->n);
    }
    c->pivot = c->n;
    for (uint32_t round = 0;; round++) {
        const size_t i = pick(c, state->weights, state->sums, ge_uniform(o->seed, index, round) * mass);
        const int probable = (double)c->x[i] - (double)c->max >= lowest_gap;
        if (probable && (o->top_p == 1 || cut[i] > (1 - o->top_p) * cut_mass)) return i;
        ge_sums_before(c->x, cut, c->n, i, cut_sums);
        const double ranked_before = total(cut_sums, c->n);
        if (ranked_before == 0 || (probable && ranked_before < o->top_p * cut_mass)) return i;
        if (cut != state->weights) ge_sums_before(c->x, state->weights, c->n, i, state->sums);
        mass = total(state->sums, c->n);
        c->pivot = i;
    }
}

static int32_t choose(ge_state *state, const float *x, float max, const ge_options *o, uint64_t index) {
    if (o->temperature < GREEDY_BELOW) return (int32_t)ge_first_of(x, state->n_vocab, max, state->maxima);
    candidates c = {.x = x, .n = state->n_vocab, .max = max};
    if (o->top_k > 0 && o->top_k < state->n_vocab) {
        ge_select(x, state->n_vocab, o->top_k, state->maxima, state->kept, state->kept_ids);
        c.x = state->kept, c.ids = state->kept_ids, c.n = o->top_k;
    }
    const size_t i = draw(state, &c, o, index);
    return c.ids ? c.ids[i] : (int32_t)i;
}

/* ---- log-probabilities ---- */

/* Sort the k values, best first and equal ones by lower id; they come in the order of ids. */
static void sort_best(float *values, int32_t *ids, size_t k) {
    for (size_t i = 1; i < k; i++) {
        const float value = values[i];
        const int32_t id = ids[i];
        size_t j = i;
        for (; j > 0 && values[j - 1] < value; j--) values[j] = values[j - 1], ids[j] = ids[j - 1];
        values[j] = value, ids[j] = id;
    }
}

static void log_probabilities(ge_state *state, const float *x, float max, double temperature, size_t n_top,
                              ge_sample *out) {
    const size_t n = state->n_vocab, k = n_top < n ? n_top : n;
    if (state->mass_temperature != temperature) {
        ge_weights(x, n, max, (float)(LOG2_E / temperature), state->weights, state->sums);
        state->mass = total(state->sums, n);
    }
    const double log_mass = log(state->mass);
    out->logprob = ((double)x[out->token_id] - (double)max) / temperature - log_mass;
    out->n_top = 0;
    if (k == 0) return;
    ge_select(x, n, k, state->maxima, state->kept, state->kept_ids);
    sort_best(state->kept, state->kept_ids, k);
    for (size_t i = 0; i < k && state->kept[i] > -INFINITY; i++, out->n_top++) {
        out->top_ids[i] = state->kept_ids[i];
        out->top_logprobs[i] = ((double)state->kept[i] - (double)max) / temperature - log_mass;
    }
}

/* ---- rows ---- */

/* Fill state->maxima and write the row's maximum; GE_NOT_FINITE for a NaN or +inf in it. */
static int measure(ge_state *state, const float *x, float *max) {
    const int nan = ge_group_maxima(x, state->n_vocab, state->maxima, max);
    return nan || *max == INFINITY ? GE_NOT_FINITE : GE_OK;
}

/* Sample a row whose touched ids are collected and adjusted. */
static int sample_adjusted(ge_state *state, const float *x, const ge_row *row, ge_sample *out) {
    const ge_options *o = row->options;
    float max;
    state->mass_temperature = 0;
    if (measure(state, x, &max) != GE_OK) return GE_NOT_FINITE;
    if (row->mask) {
        ge_apply_mask(x, row->mask, state->n_vocab, state->masked);
        x = state->masked;
        measure(state, x, &max);
    }
    if (max == -INFINITY) return GE_ALL_MASKED;
    out->token_id = choose(state, x, max, o, row->n_tokens);
    if (o->n_top >= 0 && !o->raw_logprobs) {
        const double temperature = o->temperature < GREEDY_BELOW ? 1 : o->temperature;
        log_probabilities(state, x, max, temperature, (size_t)o->n_top, out);
    }
    return GE_OK;
}

static int32_t first_not_finite(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!(x[i] < INFINITY)) return (int32_t)i;
    }
    return -1;
}

static int sample_row(ge_state *state, float *x, const ge_row *row, ge_sample *out) {
    const ge_options *o = row->options;
    out->token_id = -1;
    if (!options_are_good(o)) return GE_BAD_OPTION;
    int32_t culprit = -1;
    int status = collect(state, row, &culprit);
    if (status == GE_OK) {
        adjust(state, x, o);
        status = sample_adjusted(state, x, row, out);
        put_back(state, x);
    } else {
        out->token_id = culprit;
    }
    forget_touched(state);
    if (status == GE_NOT_FINITE) out->token_id = first_not_finite(x, state->n_vocab);
    if (status == GE_OK && o->n_top >= 0 && o->raw_logprobs) {
        float max;
        measure(state, x, &max);
        state->mass_temperature = 0;
        log_probabilities(state, x, max, 1, (size_t)o->n_top, out);
    }
    return status;
}

size_t ge_sample_rows(ge_state *state, float *logits, const ge_row *rows, size_t n_rows, ge_sample *samples) {
    size_t n_failed = 0;
    for (size_t r = 0; r < n_rows; r++) {
        samples[r].status = sample_row(state, logits + r * state->n_vocab, &rows[r], &samples[r]);
        n_failed += samples[r].status != GE_OK;
    }
    return n_failed;
}
