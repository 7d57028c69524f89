// RWKV's weighted average of the past (Peng et al. 2023, equation 16), compiled once for each instruction set.
#include "level.h"
#include "partial.h"
#include "recurrences.h"

INLINE void channels(const struct weighted_past *call, int64_t row, int64_t first, int64_t count) {
  int64_t place = row * call->channels + first;
  vec numerator = load_some(call->past[0] + place, count), denominator = load_some(call->past[1] + place, count);
  vec largest_so_far = load_some(call->past[2] + place, count), decay = -vexp(load_some(call->decay + first, count));
  vec bonus = load_some(call->first + first, count);
  for (int64_t t = 0; t < call->time; t++) {
    int64_t at = (row * call->time + t) * call->channels + first;
    vec k = load_some(call->key + at, count), v = load_some(call->value + at, count);
    vec top = larger(largest_so_far, k + bonus);
    vec before = vexp(largest_so_far - top), now = vexp(k + bonus - top);
    store_some(call->y + at, (before * numerator + now * v) / (before * denominator + now), count);
    top = larger(largest_so_far + decay, k);
    before = vexp(largest_so_far + decay - top), now = vexp(k - top);
    numerator = before * numerator + now * v;
    denominator = before * denominator + now;
    largest_so_far = top;
  }
  store_some(call->present[0] + place, numerator, count);
  store_some(call->present[1] + place, denominator, count);
  store_some(call->present[2] + place, largest_so_far, count);
}

void LEVEL_NAME(weigh)(const struct weighted_past *call, int64_t task) {
  int64_t blocks = (call->channels + BLOCK - 1) / BLOCK, first = task % blocks * BLOCK;
  int64_t last = first + BLOCK < call->channels ? first + BLOCK : call->channels;
  for (; first < last; first += LANES)
    channels(call, task / blocks, first, last - first < LANES ? last - first : LANES);
}
