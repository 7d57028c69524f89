// Averages over a ring of pairs, summed anew for every step: a running sum would drift.
#ifndef EDGEMEM_RING_AVERAGES_H
#define EDGEMEM_RING_AVERAGES_H

#include "slots.h"

// Where pairs that follow one another lie: `slots[0]` is the keys' first slot, of all streams and heads, `slots[1]` the
// values'.
struct pairs {
  const void *data;
  const float *scale;  // of integers: what each slot is multiplied with
  int64_t slots[2];
};

static void weigh_pairs(const struct memory *memory, const float *weights, const void *pairs, int64_t width,
                        int64_t count, float *sum) {
  const float kept = 1.0f;
  if (memory->element == INT8)
    weigh_as(1, weights, pairs, INT8, width, 0, count, true, &kept, &sum);
  else if (memory->element == FLOAT16)
    weigh_as(1, weights, pairs, FLOAT16, width, 0, count, true, &kept, &sum);
  else
    weigh_as(1, weights, pairs, FLOAT32, width, 0, count, true, &kept, &sum);
}

// Adds `count` pairs, of which the first has position `first`, to the sums [2][D] for a query at position `i`; returns
// the sum of their weights.
static float add_weighted(const struct attention *call, const struct memory *memory, const float *log_beta, int64_t i,
                          const struct pairs *pairs, int64_t first, int64_t count, float (*sums)[WIDTH_MAX]) {
  float weights[TILE], scaled[TILE], total = 0.0f;
  for (int64_t done = 0; done < count; done += TILE) {
    int64_t tile = count - done < TILE ? count - done : TILE;
    for (int64_t s = 0; s < tile; s++) weights[s] = log_beta ? exp_of(log_beta[i - first - done - s]) : 1.0f;
    for (int64_t s = 0; s < tile; s++) total += weights[s];
    for (int part = 0; part < 2; part++) {
      int64_t slot = pairs->slots[part] + done;
      for (int64_t s = 0; s < tile; s++) scaled[s] = pairs->scale ? weights[s] * pairs->scale[slot + s] : weights[s];
      weigh_pairs(memory, scaled, element(pairs->data, memory->element, slot * call->width), call->width, tile,
                  sums[part]);
    }
  }
  return total;
}

// Sums the pairs that step t sees into sums [2][D], keys and values; returns what makes them an average.
static float average_ring(const struct head *head, const struct memory *memory, int64_t t, float (*sums)[WIDTH_MAX]) {
  const struct attention *call = head->call;
  const float *log_beta = memory->parameter ? memory->parameter + head->index * memory->parameter_head : NULL;
  int64_t i = head->start + t, size = memory->slots, width = call->width, first = i - size + 1;
  int64_t keys = head->row * 2 * call->kv_heads + head->index, values = keys + call->kv_heads;
  float total = 0.0f;
  memset(sums[0], 0, (size_t)width * sizeof(float));
  memset(sums[1], 0, (size_t)width * sizeof(float));
  if (first < 0) first = 0;
  while (first < head->start) {  // up to the ring's end, then from its first slot
    int64_t slot = first % size, count = size - slot;
    if (count > head->start - first) count = head->start - first;
    struct pairs old = {memory->past[0], memory->past_scale[0], {keys * size + slot, values * size + slot}};
    total += add_weighted(call, memory, log_beta, i, &old, first, count, sums);
    first += count;
  }
  int64_t begin = first - head->start;  // of the call's own entries
  struct pairs new = {memory->present[0], memory->present_scale[0],
                      {keys * call->time + begin, values * call->time + begin}};
  total += add_weighted(call, memory, log_beta, i, &new, first, t + 1 - begin, sums);
  return 1.0f / total;
}

#endif
