// Summaries: one pair that stands for many. A query of step t scores it un-rotated, after step t's own pair was added.
#ifndef EDGEMEM_SUMMARIES_H
#define EDGEMEM_SUMMARIES_H

#include "queries.h"

// Where the state of one head lies in tensors [B, 2H, 1, D]: the H heads' keys, then their values.
INLINE int64_t key_place(const struct head *head) {
  return (head->row * 2 * head->call->kv_heads + head->index) * head->call->width;
}

INLINE int64_t value_place(const struct head *head) {
  return key_place(head) + head->call->kv_heads * head->call->width;
}

// The states start from those of the past; every step then changes them where they lie.
static void copy_summary(const struct head *head, const struct memory *summary) {
  int64_t places[2] = {key_place(head), value_place(head)}, width = head->call->width;
  int tensors = summary->kind == CUMULATIVE ? 2 : 1;
  for (int i = 0; i < tensors; i++)
    for (int part = 0; part < 2; part++)
      copy((float *)summary->present[i] + places[part], (const float *)summary->past[i] + places[part], width * 4);
  if (summary->kind == GEOMETRIC) {
    int64_t place = head->row * head->call->kv_heads + head->index;
    ((float *)summary->present[1])[place] = ((const float *)summary->past[1])[place];
  }
}

// mean += (x - mean) / count, with Kahan's compensation: the carry collects what was rounded off.
INLINE void add_to_mean(float *restrict mean, float *restrict carry, const float *restrict x, float share,
                        int64_t width) {
  for (int64_t d = 0; d < width; d++) {
    float step = carry[d] + share * (x[d] - mean[d] - carry[d]);
    float next = mean[d] + step;
    carry[d] = step - (next - mean[d]);
    mean[d] = next;
  }
}

INLINE void add_to_sum(float *restrict sum, const float *restrict x, float kept, int64_t width) {
  for (int64_t d = 0; d < width; d++) sum[d] = kept * sum[d] + x[d];
}

// Takes in the pair of step t.
static void add_pair(const struct head *head, const struct memory *summary, int64_t t) {
  const struct attention *call = head->call;
  const float *k = at(&call->k, head->row, t, head->index), *v = at(&call->v, head->row, t, head->index);
  float *keys = (float *)summary->present[0] + key_place(head), *values = (float *)summary->present[0] + value_place(head);
  if (summary->kind == CUMULATIVE) {
    float share = 1.0f / (float)(head->start + t + 1), *carry = summary->present[1];
    add_to_mean(keys, carry + key_place(head), k, share, call->width);
    add_to_mean(values, carry + value_place(head), v, share, call->width);
  } else {
    float *mass = (float *)summary->present[1] + head->row * call->kv_heads + head->index;
    float kept = exp_of(summary->decay[head->index] > -80.0f ? summary->decay[head->index] : -80.0f);
    add_to_sum(keys, k, kept, call->width);
    add_to_sum(values, v, kept, call->width);
    *mass = kept * *mass + 1.0f;
  }
}

static float dot(const float *a, const float *b, int64_t width) {
  vec total = {0};
  float rest = 0.0f;
  int64_t d = 0;
  for (; d + LANES <= width; d += LANES) total += load(a + d) * load(b + d);
  for (; d < width; d++) rest += a[d] * b[d];
  return sum(total) + rest;
}

// Adds every summary of the list to the queries, of which the first is query `first` of the head.
static void read_summaries(struct queries *queries, const struct head *head, int64_t first) {
  const struct attention *call = head->call;
  int64_t groups = call->groups, heads = call->kv_heads * groups;
  int number = 0;
  for (int m = 1; m < call->memories; m++) {
    const struct memory *summary = &call->memory[m];
    if (summary->kind == SINKS) continue;
    const float *keys = (const float *)summary->present[0] + key_place(head);
    const float *values = (const float *)summary->present[0] + value_place(head);
    const float *bias = call->bias ? call->bias + number * heads + head->index * groups : NULL;
    for (int r = 0; r < queries->count; r++) {
      int64_t group = (first + r) % groups;
      if (group == 0) add_pair(head, summary, (first + r) / groups);
      float factor = 1.0f;
      if (summary->kind == GEOMETRIC)
        factor = 1.0f / ((const float *)summary->present[1])[head->row * call->kv_heads + head->index];
      float score = capped(call, dot(queries->source[r], keys, call->width) * factor * call->scale);
      if (bias) score += bias[group];
      if (summary->log_count) score += logf((float)(queries->position[r] + 1));
      add_slot(queries, r, score, factor, values, call->width);
    }
    number++;
  }
}

#endif
