// Queries of one head that are answered together, and the running softmax of each.
#ifndef EDGEMEM_QUERIES_H
#define EDGEMEM_QUERIES_H

#include <math.h>

#include "level.h"
#include "rotary.h"

enum { QUERIES_MAX = 128, QUERY_FLOATS = 8192 };

// One row and one key/value head of a call.
struct head {
  const struct attention *call;
  const struct rotary *rotary;
  int64_t row, index, start;  // start: position of the first query
};

struct queries {
  int count;
  int64_t position[QUERIES_MAX];
  const float *source[QUERIES_MAX];  // as they came in
  float *read[QUERIES_MAX];          // the weighted sum of values, in its place in the output
  float top[QUERIES_MAX], total[QUERIES_MAX];
  float q[QUERY_FLOATS], sink_q[QUERY_FLOATS];  // scaled and rotated, [count, D]
};

INLINE const float *at(const struct strided *tensor, int64_t row, int64_t time, int64_t head) {
  return tensor->data + row * tensor->row + time * tensor->time + head * tensor->head;
}

// The key of step `t`, un-rotated: as it came in, or in `scratch`.
INLINE const float *plain_key(const struct head *head, int64_t t, float *scratch) {
  return unrotated(head->rotary, head->call, head->row, t, at(&head->call->k, head->row, t, head->index), scratch);
}

// A state that is bound to one address as input and output is there already.
INLINE void copy(void *to, const void *from, int64_t bytes) {
  if (to != from) memcpy(to, from, (size_t)bytes);
}

// Where the state of one head lies in tensors [B, 2H, 1, D]: the H heads' keys, then their values.
INLINE int64_t key_place(const struct head *head) {
  return (head->row * 2 * head->call->kv_heads + head->index) * head->call->width;
}

// The same of [B, H].
INLINE int64_t head_place(const struct head *head) { return head->row * head->call->kv_heads + head->index; }

INLINE int64_t value_place(const struct head *head) {
  return key_place(head) + head->call->kv_heads * head->call->width;
}

// `x` as the given slot, of all streams and heads, of state 0 or 1 of a memory.
static void write_slot(const struct memory *memory, int state, int64_t slot, const float *x, int64_t width) {
  float scale = set_elements(memory->present[state], memory->element, slot * width, x, width);
  if (memory->element == INT8) memory->present_scale[state][slot] = scale;
}

INLINE int64_t queries_at_once(int64_t width) {
  return QUERY_FLOATS / width < QUERIES_MAX ? QUERY_FLOATS / width : QUERIES_MAX;
}

// Query r of a head is that of step r / G and of its query head r % G.
static void take_queries(struct queries *queries, const struct head *head, int64_t first, int64_t count) {
  const struct attention *call = head->call;
  int64_t groups = call->groups, heads = call->kv_heads * groups;
  queries->count = (int)count;
  for (int r = 0; r < count; r++) {
    int64_t t = (first + r) / groups, h = head->index * groups + (first + r) % groups;
    queries->position[r] = head->start + t;
    queries->source[r] = at(&call->q, head->row, t, h);
    rotate_step(head->rotary, call, head->row, t, queries->source[r], call->scale, queries->q + r * call->width);
    queries->read[r] = call->read + ((head->row * call->time + t) * heads + h) * call->value_width;
    memset(queries->read[r], 0, (size_t)call->value_width * sizeof(float));
    queries->top[r] = call->sink_logits ? call->sink_logits[h] : -INFINITY;
    queries->total[r] = call->sink_logits ? 1.0f : 0.0f;
  }
}

// Query r un-rotated: as it came in, or in `scratch`.
INLINE const float *plain_query(const struct queries *queries, int r, const struct head *head, float *scratch) {
  return unrotated(head->rotary, head->call, head->row, queries->position[r] - head->start, queries->source[r], scratch);
}

// The scaled query r, un-rotated, for slots that are read by `sink_q`.
static void take_plain(struct queries *queries, int r, const struct head *head) {
  const struct attention *call = head->call;
  float scratch[WIDTH_MAX];
  const float *plain = plain_query(queries, r, head, scratch);
  for (int64_t d = 0; d < call->width; d++) queries->sink_q[r * call->width + d] = plain[d] * call->scale;
}

INLINE float capped(const struct attention *call, float score) {
  return call->softcap > 0 ? call->softcap * vtanh(splat(score / call->softcap))[0] : score;
}

// Adds one slot of the given score, whose value is `factor` * `value` [Dv].
static void add_slot(struct queries *queries, int r, float score, float factor, const float *value, int64_t width) {
  float top = queries->top[r] > score ? queries->top[r] : score;
  float kept = exp_of(queries->top[r] - top), weight = exp_of(score - top);
  queries->top[r] = top;
  queries->total[r] = queries->total[r] * kept + weight;
  float *read = queries->read[r];
  for (int64_t d = 0; d < width; d++) read[d] = read[d] * kept + weight * factor * value[d];
}

static void finish(struct queries *queries, const struct attention *call) {
  for (int r = 0; r < queries->count; r++) {
    if (queries->total[r] == 0.0f) continue;  // it saw nothing, and reads 0
    for (int64_t d = 0; d < call->value_width; d++) queries->read[r][d] /= queries->total[r];
  }
}

#endif
