// Vectors at the end of a row, which may hold fewer numbers than a vector has lanes, and functions of dt and gates.
#ifndef EDGEMEM_PARTIAL_H
#define EDGEMEM_PARTIAL_H

#include "vectors.h"

INLINE vec load_some(const float *p, int64_t count) {
  if (count >= LANES) return load(p);
  float part[LANES] = {0};
  for (int64_t i = 0; i < count; i++) part[i] = p[i];
  return load(part);
}

INLINE void store_some(float *p, vec x, int64_t count) {
  if (count >= LANES) {
    store(p, x);
    return;
  }
  for (int64_t i = 0; i < count; i++) p[i] = x[i];
}

// log(1 + e) for 0 <= e <= 1: twice the area tangent of e / (2 + e), which is at most 1/3.
INLINE vec vlog1p(vec e) {
  vec s = e / (2.0f + e), z = s * s;
  vec p = splat(1.0f / 15.0f);
  p = p * z + 1.0f / 13.0f;
  p = p * z + 1.0f / 11.0f;
  p = p * z + 1.0f / 9.0f;
  p = p * z + 1.0f / 7.0f;
  p = p * z + 1.0f / 5.0f;
  p = p * z + 1.0f / 3.0f;
  return 2.0f * (s + s * z * p);
}

// log(1 + exp(x))
INLINE vec vsoftplus(vec x) { return where(x < 0.0f, splat(0.0f), x) + vlog1p(vexp(-absolute(x))); }

#endif
