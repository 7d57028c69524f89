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
  float q[WIDTH_MAX], k[WIDTH_MAX], decay[WIDTH_MAX], found[WIDTH_MAX];
};

INLINE float length_factor(const float *x, int64_t count) {
  vec squares = {0};
  for (int64_t i = 0; i < count; i += LANES) {
    vec value = load_some(x + i, count - i);
    squares += value * value;
  }
  return 1.0f / sqrtf(sum(squares) + 1e-6f);
}

static void prepare(const struct delta_rule *call, int64_t row, int64_t head, int64_t t, struct step *step) {
  const int64_t keys = call->keys, at = row * call->time + t;
  const int64_t key_head = head / (call->heads / call->key_heads);
  const float *q = call->q + (at * call->key_heads + key_head) * keys;
  const float *k = call->k + (at * call->key_heads + key_head) * keys;
  const float *g = call->g + (at * call->heads + head) * (call->decay_of_each ? keys : 1);
  float of_q = call->scale * (call->unit ? length_factor(q, keys) : 1.0f);
  float of_k = call->unit ? length_factor(k, keys) : 1.0f;
  vec decay = vexp(splat(g[0]));
  for (int64_t i = 0; i < keys; i += LANES) {
    int64_t left = keys - i;
    vec key = of_k * load_some(k + i, left);
    if (call->decay_of_each) decay = vexp(load_some(g + i, left));
    store_some(step->q + i, of_q * load_some(q + i, left), left);
    store_some(step->k + i, key, left);
    store_some(step->decay + i, decay, left);
    store_some(step->found + i, key * decay, left);
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
    int64_t at = (row * call->time + t) * call->heads + head;
    if (t + 1 < call->time)
      prepare(call, row, head, t + 1, next);
    else
      memset(next->found, 0, (size_t)keys * sizeof(float));
    for (int c = 0; c < vectors; c++) {
      written[c] = call->beta[at] * (load_some(call->v + at * values + first + c * LANES, count) - found[c]);
      found[c] = read[c] = (vec){0};
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
    for (int c = 0; c < vectors; c++) store_some(call->y + at * values + first + c * LANES, read[c], count);
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
