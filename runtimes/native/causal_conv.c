// A causal convolution of each channel, and the steps that the next call needs; compiled once for each instruction set.
#include "level.h"
#include "partial.h"
#include "recurrences.h"

enum { TAPS_MAX = 8 };  // of weights that are kept in registers

// Lane i is number `at` of channel first + i, each of which has `stride` of them.
INLINE vec across(const float *values, int64_t stride, int64_t at, int64_t count) {
  float each[LANES] = {0};
  for (int64_t i = 0; i < count; i++) each[i] = values[i * stride + at];
  return load(each);
}

// LANES channels at step t; the state holds the steps before the call.
INLINE vec input_at(const struct convolution *call, int64_t row, int64_t first, int64_t count, int64_t t) {
  if (t >= 0) return load_some(call->x + (row * call->time + t) * call->channels + first, count);
  return across(call->past + (row * call->channels + first) * call->slots, call->slots, call->slots + t, count);
}

INLINE void channels(const struct convolution *call, int64_t row, int64_t first, int64_t count) {
  const int64_t taps = call->taps;
  const float *weight = call->weight + first * taps;
  vec weights[TAPS_MAX], bias = {0};
  for (int64_t k = 0; k < taps && k < TAPS_MAX; k++) weights[k] = across(weight, taps, k, count);
  if (call->bias) bias = load_some(call->bias + first, count);
  for (int64_t t = 0; t < call->time; t++) {
    vec y = {0};
    for (int64_t k = 0; k < taps; k++)
      y += (k < TAPS_MAX ? weights[k] : across(weight, taps, k, count)) * input_at(call, row, first, count, t - taps + 1 + k);
    y += bias;
    store_some(call->y + (row * call->time + t) * call->channels + first, call->silu ? vsilu(y) : y, count);
  }
}

// A step with four taps and slots, as most models have them: a channel's are a quarter of a vector.
INLINE void one_step_of_four(const struct convolution *call, int64_t row, int64_t first) {
  const float *past = call->past + (row * call->channels + first) * 4, *weight = call->weight + first * 4;
  float *present = call->present + (row * call->channels + first) * 4;
  const float *x = call->x + row * call->channels + first;
  float sums[LANES];
  for (int i = 0; i < LANES; i++) {
    float a = past[4 * i + 1], b = past[4 * i + 2], c = past[4 * i + 3], d = x[i];
    sums[i] = weight[4 * i] * a + weight[4 * i + 1] * b + (weight[4 * i + 2] * c + weight[4 * i + 3] * d);
    present[4 * i] = a, present[4 * i + 1] = b, present[4 * i + 2] = c, present[4 * i + 3] = d;
  }
  vec y = load(sums);
  if (call->bias) y += load(call->bias + first);
  store(call->y + row * call->channels + first, call->silu ? vsilu(y) : y);
}

void LEVEL_NAME(convolve)(const struct convolution *call, int64_t task) {
  int64_t blocks = (call->channels + BLOCK - 1) / BLOCK, row = task / blocks;
  int64_t first = task % blocks * BLOCK, last = first + BLOCK;
  if (last > call->channels) last = call->channels;
  bool four = call->time == 1 && call->taps == 4 && call->slots == 4;
  for (; four && first + LANES <= last; first += LANES) one_step_of_four(call, row, first);
  for (int64_t c = first; c < last; c += LANES) {
    int64_t count = last - c < LANES ? last - c : LANES;
    channels(call, row, c, count);
    for (int64_t slot = 0; slot < call->slots; slot++) {
      vec kept = input_at(call, row, c, count, call->time - call->slots + slot);
      for (int64_t i = 0; i < count; i++)
        call->present[(row * call->channels + c + i) * call->slots + slot] = kept[i];
    }
  }
}
