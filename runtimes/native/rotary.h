// Rotary positions: each pair of a head's elements is turned by position * phases[f], an exact part of a turn; or by the
// cosines and sines that the model made itself, which turn the first R of D. The pairs are (f, f + pairs) or neighbours.
#ifndef EDGEMEM_ROTARY_H
#define EDGEMEM_ROTARY_H

#include "level.h"

struct rotary {
  int64_t pairs, start, width;  // pairs: 0 where nothing is turned by phases
  bool neighbours;
  bool from_phases;  // queries and keys come un-rotated, and phases rotate them
  uint32_t steps[WIDTH_MAX / 2 + LANES];  // in 2^-32 of a turn for each position; zero beyond the pairs
};

static void prepare_rotary(struct rotary *rotary, const struct attention *call) {
  rotary->width = call->width;
  rotary->pairs = call->phases ? call->pairs : 0;
  rotary->start = call->rotary_start;
  rotary->neighbours = call->neighbours;
  rotary->from_phases = call->rotate && !call->tables;
  int64_t f = 0;
  for (; f < rotary->pairs; f++) rotary->steps[f] = (uint32_t)call->phases[f] << 1;
  for (; f < rotary->pairs + LANES; f++) rotary->steps[f] = 0;
}

// Turns the pairs (x[f * step], x[f * step + apart]).
INLINE void turn_pairs(const int64_t step, int64_t pairs, int64_t apart, const float *restrict cosines,
                       const float *restrict sines, const float *restrict x, float *restrict out) {
  for (int64_t f = 0; f < pairs; f++) {
    float low = x[f * step], high = x[f * step + apart];
    out[f * step] = low * cosines[f] - high * sines[f];
    out[f * step + apart] = low * sines[f] + high * cosines[f];
  }
}

// `x` [D] rotated by a number of positions and scaled. The product of 32-bit factors wraps at a whole turn, so every
// number is exact, negative ones too.
static void rotate(const struct rotary *rotary, int64_t positions, const float *restrict x, float scale,
                   float *restrict out) {
  float cosines[WIDTH_MAX / 2 + LANES], sines[WIDTH_MAX / 2 + LANES];
  int64_t pairs = rotary->pairs, start = rotary->start;
  for (int64_t f = 0; f < pairs; f += LANES) {
    vec cosine, sine;
    uvec steps = (uvec)iload((const int32_t *)rotary->steps + f);
    vsincos((ivec)(steps * (uint32_t)positions), &cosine, &sine);
    store(cosines + f, cosine * scale);
    store(sines + f, sine * scale);
  }
  if (rotary->neighbours)
    turn_pairs(2, pairs, 1, cosines, sines, x + start, out + start);
  else
    turn_pairs(1, pairs, pairs, cosines, sines, x + start, out + start);
  for (int64_t d = 0; d < start; d++) out[d] = x[d] * scale;
  for (int64_t d = start + 2 * pairs; d < rotary->width; d++) out[d] = x[d] * scale;
}

// The same by a row of tables: cosines [R], then sines [R].
static void rotate_by_tables(const float *tables, int64_t turned, int64_t width, const float *restrict x, float scale,
                             float *restrict out) {
  int64_t half = turned / 2;
  const float *cosines = tables, *sines = tables + turned;
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
  if (call->tables)
    rotate_by_tables(call->tables + row * call->tables_row + t * 2 * call->turned, call->turned, call->width, x, scale,
                     out);
  else if (rotary->from_phases)
    rotate(rotary, call->position[row] + t, x, scale, out);
  else
    for (int64_t d = 0; d < call->width; d++) out[d] = x[d] * scale;
}

// `x` [D] of step `t` of a row without its rotation: in `scratch`, where it came with one.
static const float *unrotated(const struct rotary *rotary, const struct attention *call, int64_t row, int64_t t,
                              const float *x, float *scratch) {
  float turned[WIDTH_MAX];
  if (rotary->from_phases || rotary->pairs == 0) return x;
  rotate_step(rotary, call, row, t, x, 1.0f, turned);
  rotate(rotary, -(call->position[row] + t), turned, 1.0f, scratch);
  return scratch;
}

#endif
