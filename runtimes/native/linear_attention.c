// Linear attention (Katharopoulos et al. 2020, equations 18 to 20), compiled once for each instruction set.
//
// The sums M and z grow without bound, so their means are kept. A read is a quotient: the count cancels. A task takes
// one head of one stream: its columns a few vectors at a time through all steps of the call, then the column of z,
// which divides what was read.
#include "level.h"
#include "partial.h"
#include "recurrences.h"

// Keys of one step, and where the call's parts of one head lie.
struct head {
  const struct linear_attention *call;
  int64_t row, head, width;  // width: floats of a row of the state
  float key[WIDTH_MAX], query[WIDTH_MAX];
};

// elu(factor x) + 1
INLINE void features(const float *x, int64_t count, float factor, float *to) {
  for (int64_t i = 0; i < count; i += LANES) {
    vec value = factor * load_some(x + i, count - i);
    vec below = vexp(where(value < 0.0f, value, splat(0.0f)));
    store_some(to + i, where(value > 0.0f, value + 1.0f, below), count - i);
  }
}

// Queries, keys and values of a step of the row.
INLINE const float *of_step(const struct head *at, int64_t t) {
  const struct linear_attention *call = at->call;
  int64_t width = call->heads * ((call->groups + 1) * call->keys + call->values);
  return call->qkv + (at->row * call->time + t) * width;
}

INLINE void prepare_key(struct head *at, int64_t t) {
  const struct linear_attention *call = at->call;
  const float *keys = of_step(at, t) + call->heads * call->groups * call->keys;
  features(keys + at->head * call->keys, call->keys, 1.0f, at->key);
}

INLINE void prepare_query(struct head *at, int64_t t, int64_t group) {
  const struct linear_attention *call = at->call;
  const float *query = of_step(at, t) + (at->head * call->groups + group) * call->keys;
  features(query, call->keys, call->scale, at->query);
}

INLINE float *read_of(const struct head *at, int64_t t, int64_t group) {
  const struct linear_attention *call = at->call;
  int64_t step = at->row * call->time + t;
  return call->y + ((step * call->heads + at->head) * call->groups + group) * call->values;
}

// Pairs in the mean after a step, inverted.
INLINE float share_of(const struct head *at, int64_t t) {
  return 1.0f / (float)(at->call->position[at->row] + t + 1);
}

// Columns `first` and on through all steps, in `vectors` vectors; the last may have only `count` of them.
INLINE void columns(struct head *at, int64_t first, const int vectors, const int64_t count) {
  const struct linear_attention *call = at->call;
  const int64_t start = (at->row * call->heads + at->head) * call->keys * at->width + first;
  const float *old_mean = call->past[0] + start, *old_carry = call->past[1] + start;
  float *mean = call->present[0] + start, *carry = call->present[1] + start;
  for (int64_t t = 0; t < call->time; t++) {
    const float *values = of_step(at, t) + call->heads * (call->groups + 1) * call->keys + at->head * call->values;
    const float share = share_of(at, t);
    vec value[COLUMN_VECTORS], read[COLUMN_VECTORS];
    for (int c = 0; c < vectors; c++) {
      value[c] = load_some(values + first + c * LANES, count);
      read[c] = (vec){0};
    }
    prepare_key(at, t);
    prepare_query(at, t, 0);
    for (int64_t i = 0; i < call->keys; i++)
#pragma GCC unroll 4
      for (int c = 0; c < vectors; c++) {
        int64_t place = i * at->width + c * LANES;
        vec before = load_some(old_mean + place, count), lost = load_some(old_carry + place, count);
        vec step = lost + (at->key[i] * value[c] - (before + lost)) * share;
        vec after = before + step;
        lost = step - (after - before);
        store_some(mean + place, after, count);
        store_some(carry + place, lost, count);
        read[c] += at->query[i] * (after + lost);
      }
    for (int c = 0; c < vectors; c++) store_some(read_of(at, t, 0) + first + c * LANES, read[c], count);
    for (int64_t group = 1; group < call->groups; group++) {
      prepare_query(at, t, group);
      for (int c = 0; c < vectors; c++) read[c] = (vec){0};
      for (int64_t i = 0; i < call->keys; i++)
        for (int c = 0; c < vectors; c++) {
          int64_t place = i * at->width + c * LANES;
          read[c] += at->query[i] * (load_some(mean + place, count) + load_some(carry + place, count));
        }
      for (int c = 0; c < vectors; c++) store_some(read_of(at, t, group) + first + c * LANES, read[c], count);
    }
    old_mean = mean, old_carry = carry;
  }
}

// The column of z through all steps. What was read is divided by its read.
INLINE void masses(struct head *at) {
  const struct linear_attention *call = at->call;
  const int64_t start = (at->row * call->heads + at->head) * call->keys * at->width + call->values;
  const float *old_mean = call->past[0] + start, *old_carry = call->past[1] + start;
  float *mean = call->present[0] + start, *carry = call->present[1] + start, mass[WIDTH_MAX];
  for (int64_t t = 0; t < call->time; t++) {
    const float share = share_of(at, t);
    prepare_key(at, t);
    for (int64_t i = 0; i < call->keys; i++) {
      int64_t place = i * at->width;
      float before = old_mean[place], lost = old_carry[place];
      float step = lost + (at->key[i] - (before + lost)) * share;
      mean[place] = before + step;
      carry[place] = step - (mean[place] - before);
      mass[i] = mean[place] + carry[place];
    }
    for (int64_t group = 0; group < call->groups; group++) {
      prepare_query(at, t, group);
      vec read = {0};
      for (int64_t i = 0; i < call->keys; i += LANES)
        read += load_some(at->query + i, call->keys - i) * load_some(mass + i, call->keys - i);
      float *y = read_of(at, t, group), divisor = sum(read);
      for (int64_t i = 0; i < call->values; i += LANES)
        store_some(y + i, load_some(y + i, call->values - i) / divisor, call->values - i);
    }
    old_mean = mean, old_carry = carry;
  }
}

void LEVEL_NAME(attend_linearly)(const struct linear_attention *call, int64_t task) {
  struct head at = {.call = call, .row = task / call->heads, .head = task % call->heads, .width = call->values + 1};
  int64_t first = 0;
  for (; first + COLUMN_VECTORS * LANES <= call->values; first += COLUMN_VECTORS * LANES)
    columns(&at, first, COLUMN_VECTORS, LANES);
  for (; first + LANES <= call->values; first += LANES) columns(&at, first, 1, LANES);
  if (first < call->values) columns(&at, first, 1, call->values - first);
  masses(&at);
}
