// SwiGLU and RMSNorm, compiled once for each instruction set.
#include <math.h>

#include "level.h"

void LEVEL_NAME(swiglu)(const float *gate, const float *up, float *out, int64_t width) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) store(out + i, vsilu(load(gate + i)) * load(up + i));
  for (; i < width; i++) out[i] = vsilu(splat(gate[i]))[0] * up[i];
}

void LEVEL_NAME(rms_norm)(const float *x, const float *delta, const float *weight, float epsilon, float *out,
                          float *sum_out, int64_t width) {
  vec squares = {0};
  float rest = 0.0f;
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    vec value = load(x + i);
    if (delta) value += load(delta + i);
    if (sum_out) store(sum_out + i, value);
    squares += value * value;
  }
  for (; i < width; i++) {
    float value = delta ? x[i] + delta[i] : x[i];
    if (sum_out) sum_out[i] = value;
    rest += value * value;
  }
  float total = sum(squares) + rest;
  float factor = 1.0f / sqrtf(total / (float)width + epsilon);
  for (i = 0; i + LANES <= width; i += LANES) {
    vec value = load(x + i);
    if (delta) value += load(delta + i);
    store(out + i, value * factor * load(weight + i));
  }
  for (; i < width; i++) out[i] = (delta ? x[i] + delta[i] : x[i]) * factor * weight[i];
}
