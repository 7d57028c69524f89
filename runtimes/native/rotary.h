// Rotary positions: each pair (x[f], x[f + D/2]) is turned by position * phases[f], an exact part of a turn; or by the
// cosines and sines that the model made itself, which turn the first R of D.
#ifndef EDGEMEM_ROTARY_H
#define EDGEMEM_ROTARY_H

#include "level.h"

struct rotary {
  int64_t pairs;                      // D/2, or 0 where nothing is rotated
  int64_t width;
  uint32_t steps[WIDTH_MAX / 2 + LANES];  // in 2^-32 of a turn for each position; zero beyond the pairs
};

static void prepare_rotary(struct rotary *rotary, const struct attention *call) {
  rotary->width = call->width;
  rotary->pairs = call->phases ? call->width / 2 : 0;
  int64_t f = 0;
  for (; f < rotary->pairs; f++) rotary->steps[f] = (uint32_t)call->phases[f] << 1;
  for (; f < rotary->pairs + LANES; f++) rotary->steps[f] = 0;
}

// `x` [D] rotated to a position and scaled. The product of 32-bit factors wraps at a whole turn, so every position is exact.
static void rotate(const struct rotary *rotary, int64_t position, const float *restrict x, float scale,
                   float *restrict out) {
  float cosines[WIDTH_MAX / 2 + LANES], sines[WIDTH_MAX / 2 + LANES];
  int64_t half = rotary->pairs;
  if (half == 0) {
    for (int64_t d = 0; d < rotary->width; d++) out[d] = x[d] * scale;
    return;
  }
  for (int64_t f = 0; f < half; f += LANES) {
    vec cosine, sine;
    uvec steps = (uvec)iload((const int32_t *)rotary->steps + f);
    vsincos((ivec)(steps * (uint32_t)position), &cosine, &sine);
    store(cosines + f, cosine * scale);
    store(sines + f, sine * scale);
  }
  for (int64_t f = 0; f < half; f++) {
    float low = x[f], high = x[f + half];
    out[f] = low * cosines[f] - high * sines[f];
    out[f + half] = low * sines[f] + high * cosines[f];
  }
}

// The same by a row of `turns`: cosines [R], then sines [R].
static void rotate_by_turns(const float *turns, int64_t turned, int64_t width, const float *restrict x, float scale,
                            float *restrict out) {
  int64_t half = turned / 2;
  const float *cosines = turns, *sines = turns + turned;
  for (int64_t f = 0; f < half; f++) {
    float low = x[f], high = x[f + half];
    out[f] = (low * cosines[f] - high * sines[f]) * scale;
    out[f + half] = (high * cosines[f + half] + low * sines[f + half]) * scale;
  }
  for (int64_t d = turned; d < width; d++) out[d] = x[d] * scale;
}

// `x` [D] of step `t` of a row, rotated to its own position and scaled.
static void rotate_step(const struct rotary *rotary, const struct attention *call, int64_t row, int64_t t,
                        const float *x, float scale, float *out) {
  if (call->turns)
    rotate_by_turns(call->turns + row * call->turns_row + t * 2 * call->turned, call->turned, call->width, x, scale,
                    out);
  else
    rotate(rotary, call->position[row] + t, x, scale, out);
}

#endif
