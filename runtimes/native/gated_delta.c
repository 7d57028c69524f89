// The gated delta rule (Yang et al. 2024, equation 10), compiled once for each instruction set.
//
// Columns of the state do not depend on each other: a task takes a few vectors of columns of one head through all
// steps of the call, so they stay in the cache. The pass that writes step t also computes what step t + 1 finds.
#include <math.h>

#include "level.h"
#include "partial.h"
#include "recurrences.h"

// Queries, keys and decays of one step and head. found: keys times decays.
struct step {
  float q[WIDTH_MAX], k[WIDTH_MAX], decay[WIDTH_MAX], found[WIDTH_MAX], beta;
};

INLINE float length_factor(const float *x, int64_t count, float scale) {
  vec squares = {0};
  for (int64_t i = 0; i < count; i += LANES) {
    vec value = scale * load_some(x + i, count - i);
    squares += value * value;
  }
  return 1.0f / sqrtf(sum(squares) + 1e-6f);
}

// The query that is number `group` of those that read a head's matrix, as it is multiplied with the matrix.
static void prepare_query(const struct delta_rule *call, int64_t at, int64_t key_head, int64_t group, float *to) {
  const float *q = call->q + at * call->q_step + (key_head * call->groups + group) * call->keys;
  float factor = call->scale;
  if (call->unit) factor *= length_factor(q, call->keys, call->unit == 2 ? call->scale : 1.0f);
  for (int64_t i = 0; i < call->keys; i += LANES)
    store_some(to + i, factor * load_some(q + i, call->keys - i), call->keys - i);
}

static void prepare(const struct delta_rule *call, int64_t row, int64_t head, int64_t t, struct step *step) {
  const int64_t keys = call->keys, at = row * call->time + t;
  const int64_t key_head = head / (call->heads / call->key_heads);
  const float *k = call->k + at * call->k_step + key_head * keys;
  const float *g = call->g + at * call->heads * (call->beta ? 1 : 2) + head;
  if (call->decay_of_each) g = call->g + (at * call->heads + head) * keys;
  float of_k = call->unit ? length_factor(k, keys, 1.0f) : 1.0f;
  vec decay = call->beta ? vexp(splat(g[0])) : vsigmoid(splat(g[0]));
  step->beta = call->beta ? call->beta[at * call->heads + head] : vsigmoid(splat(g[call->heads]))[0];
  prepare_query(call, at, key_head, 0, step->q);
  for (int64_t i = 0; i < keys; i += LANES) {
    int64_t left = keys - i;
    vec key = of_k * load_some(k + i, left);
    if (call->decay_of_each) decay = vexp(load_some(g + i, left));
    store_some(step->k + i, key, left);
    store_some(step->decay + i, decay, left);
    store_some(step->found + i, key * decay, left);
  }
}

// What the queries after the first read of the matrix, after the step at row * T + t.
static void read_again(const struct delta_rule *call, int64_t at, int64_t head, const float *matrix, int64_t first,
                       const int vectors, const int64_t count) {
  const int64_t key_head = head / (call->heads / call->key_heads), values = call->values;
  float q[WIDTH_MAX];
  for (int64_t group = 1; group < call->groups; group++) {
    vec read[COLUMN_VECTORS] = {{0}};
    prepare_query(call, at, key_head, group, q);
    for (int64_t i = 0; i < call->keys; i++)
      for (int c = 0; c < vectors; c++) read[c] += q[i] * load_some(matrix + i * values + c * LANES, count);
    float *y = call->y + ((at * call->heads + head) * call->groups + group) * values + first;
    for (int c = 0; c < vectors; c++) store_some(y + c * LANES, read[c], count);
  }
}

// Columns `first` and on, in `vectors` vectors; the last may have only `count` of them.
INLINE void columns(const struct delta_rule *call, int64_t row, int64_t head, int64_t first, const int vectors,
                    const int64_t count) {
  const int64_t keys = call->keys, values = call->values, matrix = (row * call->heads + head) * keys * values + first;
  struct step steps[2];
  const float *past = call->past + matrix;
  float *present = call->present + matrix;
  vec found[COLUMN_VECTORS], written[COLUMN_VECTORS], read[COLUMN_VECTORS];
  for (int c = 0; c < vectors; c++) found[c] = (vec){0};
  prepare(call, row, head, 0, &steps[0]);
  for (int64_t i = 0; i < keys; i++)
#pragma GCC unroll 4
    for (int c = 0; c < vectors; c++)
      found[c] += steps[0].found[i] * load_some(past + i * values + c * LANES, count);
  for (int64_t t = 0; t < call->time; t++) {
    const struct step *now = &steps[t % 2];
    struct step *next = &steps[(t + 1) % 2];
    int64_t at = row * call->time + t, place = (at * call->heads + head) * values + first;
    if (t + 1 < call->time)
      prepare(call, row, head, t + 1, next);
    else
      memset(next->found, 0, (size_t)keys * sizeof(float));
    for (int c = 0; c < vectors; c++) {
      vec value = load_some(call->v + at * call->v_step + head * values + first + c * LANES, count);
      written[c] = now->beta * (value - found[c]);
      found[c] = read[c] = (vec){0};
      if (call->written) store_some(call->written + place + c * LANES, written[c], count);
    }
    for (int64_t i = 0; i < keys; i++) {
      float decay = now->decay[i], k = now->k[i], q = now->q[i], later = next->found[i];
#pragma GCC unroll 4
      for (int c = 0; c < vectors; c++) {
        vec s = decay * load_some(past + i * values + c * LANES, count) + k * written[c];
        store_some(present + i * values + c * LANES, s, count);
        read[c] += q * s;
        found[c] += later * s;
      }
    }
    float *y = call->y + (at * call->heads + head) * call->groups * values + first;
    for (int c = 0; c < vectors; c++) store_some(y + c * LANES, read[c], count);
    if (call->groups > 1) read_again(call, at, head, present, first, vectors, count);
    past = present;
  }
}

void LEVEL_NAME(correct)(const struct delta_rule *call, int64_t task) {
  int64_t blocks = (call->values + COLUMN_VECTORS * LANES - 1) / (COLUMN_VECTORS * LANES);
  int64_t matrix = task / blocks, row = matrix / call->heads, head = matrix % call->heads;
  int64_t first = task % blocks * COLUMN_VECTORS * LANES, last = first + COLUMN_VECTORS * LANES;
  if (last <= call->values) {
    columns(call, row, head, first, COLUMN_VECTORS, LANES);
    return;
  }
  for (; first + LANES <= call->values; first += LANES) columns(call, row, head, first, 1, LANES);
  if (first < call->values) columns(call, row, head, first, 1, call->values - first);
}
