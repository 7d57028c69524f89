// Summaries: one pair that stands for many. A query of step t scores it un-rotated, after step t's own pair was added.
#ifndef EDGEMEM_SUMMARIES_H
#define EDGEMEM_SUMMARIES_H

#include "queries.h"
#include "ring_averages.h"

// One head's part of a state [B, 2H, slots, D]: keys or values start from those of the past.
static void copy_pair(const struct head *head, const struct memory *memory, int tensor, int64_t slots) {
  const int64_t places[2] = {key_place(head) * slots, value_place(head) * slots};
  for (int part = 0; part < 2; part++)
    copy((float *)memory->present[tensor] + places[part], (const float *)memory->past[tensor] + places[part],
         slots * head->call->width * 4);
}

// States that are replaced start from those of the past; every step then changes them where they lie. Rings of pairs
// get the call's entries.
static void begin_summary(const struct head *head, const struct memory *memory) {
  const struct attention *call = head->call;
  float scratch[WIDTH_MAX];
  switch (memory->kind) {
    case MOVING_AVERAGE:
    case WEIGHTED_AVERAGE:
      for (int64_t t = 0; t < call->time; t++) {
        int64_t slot = (head->row * 2 * call->kv_heads + head->index) * call->time + t;
        write_slot(memory, 0, slot, plain_key(head, t, scratch), call->width);
        slot += call->kv_heads * call->time;
        write_slot(memory, 0, slot, at(&call->v, head->row, t, head->index), call->width);
      }
      return;
    case CUMULATIVE: copy_pair(head, memory, 1, 1); break;
    case COMPRESSED: copy_pair(head, memory, 1, 1); break;
    default: ((float *)memory->present[1])[head_place(head)] = ((const float *)memory->past[1])[head_place(head)];
  }
  copy_pair(head, memory, 0, memory->kind == COMPRESSED ? memory->slots : 1);
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

// sum = kept * sum + taken * x
INLINE void add_to_sum(float *restrict sum, const float *restrict x, float kept, float taken, int64_t width) {
  for (int64_t d = 0; d < width; d++) sum[d] = kept * sum[d] + taken * x[d];
}

// What a decaying average keeps of its sum at step t, and with which weight it takes the step's pair in.
static void decay_at(const struct head *head, const struct memory *memory, int64_t t, float *kept, float *taken) {
  const struct attention *call = head->call;
  float least = exp_of(-80.0f);  // smaller ones are denormal soon, which processors multiply slowly
  *taken = 1.0f;
  if (memory->kind == GEOMETRIC) {
    *kept = exp_of(memory->parameter[head->index]);
  } else {
    float logit = memory->parameter[(head->row * call->time + t) * call->kv_heads + head->index];
    float e = exp_of(logit < 0 ? logit : -logit), more = 1.0f / (1.0f + e), less = e / (1.0f + e);
    *kept = logit < 0 ? less : more;
    *taken = logit < 0 ? more : less;
    if (*taken < 1e-12f) *taken = 1e-12f;  // keeps the mass above 0
  }
  if (*kept < least) *kept = least;
}

// Takes in the pair of step t.
static void add_pair(const struct head *head, const struct memory *memory, int64_t t) {
  const struct attention *call = head->call;
  float scratch[WIDTH_MAX];
  const float *k = plain_key(head, t, scratch), *v = at(&call->v, head->row, t, head->index);
  float *keys = (float *)memory->present[0] + key_place(head), *values = (float *)memory->present[0] + value_place(head);
  if (memory->kind == CUMULATIVE) {
    float share = 1.0f / (float)(head->start + t + 1), *carry = memory->present[1];
    add_to_mean(keys, carry + key_place(head), k, share, call->width);
    add_to_mean(values, carry + value_place(head), v, share, call->width);
  } else {
    float kept, taken, *mass = (float *)memory->present[1] + head_place(head);
    decay_at(head, memory, t, &kept, &taken);
    add_to_sum(keys, k, kept, taken, call->width);
    add_to_sum(values, v, kept, taken, call->width);
    *mass = kept * *mass + taken;
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

// The pair of a summary at one step: factor * keys and factor * values, which stand for `count` pairs.
struct summary {
  const float *keys, *values;
  float factor;
  int64_t count;
  float scratch[2][WIDTH_MAX];
};

// A ring's average is computed anew for every step; the others go on from the last step to this one.
static void summarise(struct summary *summary, const struct head *head, const struct memory *memory, int64_t t,
                      bool next_step) {
  int64_t seen = head->start + t + 1;
  if (memory->kind == MOVING_AVERAGE || memory->kind == WEIGHTED_AVERAGE) {
    summary->count = seen < memory->slots ? seen : memory->slots;
    summary->factor = average_ring(head, memory, t, summary->scratch);
    summary->keys = summary->scratch[0], summary->values = summary->scratch[1];
    return;
  }
  if (next_step) add_pair(head, memory, t);
  summary->count = seen;
  summary->factor = memory->kind == CUMULATIVE ? 1.0f : 1.0f / ((const float *)memory->present[1])[head_place(head)];
  summary->keys = (const float *)memory->present[0] + key_place(head);
  summary->values = (const float *)memory->present[0] + value_place(head);
}

INLINE bool is_summary(const struct memory *memory) {
  return memory->kind != WINDOW && memory->kind != SINKS && memory->kind != COMPRESSED && memory->kind != EXACT;
}

// Adds every summary of the list to the queries, of which the first is query `first` of the head.
static void read_summaries(struct queries *queries, const struct head *head, int64_t first) {
  const struct attention *call = head->call;
  int64_t groups = call->groups, heads = call->kv_heads * groups;
  int number = 0;
  struct summary summary;
  float scratch[WIDTH_MAX];
  for (int m = 0; m < call->memories; m++) {
    const struct memory *memory = &call->memory[m];
    if (!is_summary(memory)) continue;
    const float *bias = call->bias ? call->bias + number * heads + head->index * groups : NULL;
    for (int r = 0; r < queries->count; r++) {
      int64_t group = (first + r) % groups;
      if (r == 0 || group == 0) summarise(&summary, head, memory, (first + r) / groups, group == 0);
      float product = dot(plain_query(queries, r, head, scratch), summary.keys, call->width) * summary.factor;
      float score = capped(call, product * call->scale);
      if (bias) score += bias[group];
      if (memory->log_count) score += logf((float)summary.count);
      add_slot(queries, r, score, summary.factor, summary.values, call->width);
    }
    number++;
  }
}

#endif
