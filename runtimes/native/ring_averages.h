// Averages over a ring of pairs, summed anew for every step: a running sum would drift.
#ifndef EDGEMEM_RING_AVERAGES_H
#define EDGEMEM_RING_AVERAGES_H

#include "slots.h"

// Adds `count` pairs, of which the first has position `first`, to the sums [2][D] for a query at position `i`; returns
// the sum of their weights. `keys` is their place among the elements of `data`, `values` that of the values.
static float add_weighted(const struct attention *call, const struct memory *memory, const float *log_beta, int64_t i,
                          const void *data, int64_t keys, int64_t values, int64_t first, int64_t count,
                          float (*sums)[WIDTH_MAX]) {
  float weights[TILE], total = 0.0f;
  for (int64_t done = 0; done < count; done += TILE) {
    int64_t tile = count - done < TILE ? count - done : TILE;
    for (int64_t s = 0; s < tile; s++) weights[s] = log_beta ? exp_of(log_beta[i - first - done - s]) : 1.0f;
    for (int64_t s = 0; s < tile; s++) total += weights[s];
    const int64_t places[2] = {keys + done * call->width, values + done * call->width};
    for (int part = 0; part < 2; part++) {
      const float kept = 1.0f;
      float *sum = sums[part];
      const void *pairs = element(data, memory->element, places[part]);
      if (memory->element == FLOAT16)
        weigh_as(1, weights, pairs, FLOAT16, call->width, 0, tile, true, &kept, &sum);
      else
        weigh_as(1, weights, pairs, FLOAT32, call->width, 0, tile, true, &kept, &sum);
    }
  }
  return total;
}

// Sums the pairs that step t sees into sums [2][D], keys and values; returns what makes them an average.
static float average_ring(const struct head *head, const struct memory *memory, int64_t t, float (*sums)[WIDTH_MAX]) {
  const struct attention *call = head->call;
  const float *log_beta = memory->parameter ? memory->parameter + head->index * memory->parameter_head : NULL;
  int64_t i = head->start + t, size = memory->slots, width = call->width, first = i - size + 1;
  float total = 0.0f;
  memset(sums[0], 0, (size_t)width * sizeof(float));
  memset(sums[1], 0, (size_t)width * sizeof(float));
  if (first < 0) first = 0;
  while (first < head->start) {  // up to the ring's end, then from its first slot
    int64_t slot = first % size, count = size - slot;
    if (count > head->start - first) count = head->start - first;
    total += add_weighted(call, memory, log_beta, i, memory->past[0], key_place(head) * size + slot * width,
                          value_place(head) * size + slot * width, first, count, sums);
    first += count;
  }
  int64_t begin = first - head->start;  // of the call's own entries
  total += add_weighted(call, memory, log_beta, i, memory->present[0], (key_place(head) * call->time) + begin * width,
                        value_place(head) * call->time + begin * width, first, t + 1 - begin, sums);
  return 1.0f / total;
}

#endif
