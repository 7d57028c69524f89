// The element types of a ring: what is stored, and how a vector of it becomes a vector of floats.
#ifndef EDGEMEM_ELEMENTS_H
#define EDGEMEM_ELEMENTS_H

#include <math.h>

#include "kernels.h"
#include "vectors.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

typedef uint16_t half_vec __attribute__((vector_size(LANES * 2)));
typedef uint16_t loose_half_vec __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

typedef int8_t byte_vec __attribute__((vector_size(LANES)));

// Half precision by integers: the bits of exponent and fraction, moved to their places in a float, are 2^112 too small.
INLINE float half_to_float(uint16_t half) {
  union { uint32_t bits; float value; } wide = {.bits = (uint32_t)(half & 0x7fff) << 13};
  wide.value *= 0x1p112f;
  if ((half & 0x7c00) == 0x7c00) wide.bits |= 0x7f800000;  // infinity and NaN
  wide.bits |= (uint32_t)(half & 0x8000) << 16;
  return wide.value;
}

// To the nearest half, ties to even; what is too large becomes infinity.
INLINE uint16_t float_to_half(float x) {
  union { float value; uint32_t bits; } wide = {.value = x};
  uint32_t sign = wide.bits >> 16 & 0x8000, size = wide.bits & 0x7fffffff;
  if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);     // NaN
  if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);    // rounds to 65536 or more
  if (size < 0x38800000) {                                      // below 2^-14: a multiple of 2^-24
    wide.bits = size;
    wide.value += 0.5f;  // its last bit is 2^-24, so the sum is rounded where the half ends
    return (uint16_t)(sign | (wide.bits - 0x3f000000));
  }
  size += 0xfff + (size >> 13 & 1);
  return (uint16_t)(sign | (size - 0x38000000) >> 13);
}

INLINE vec load_half(const uint16_t *p) {
#if defined(__AVX512F__)
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
  return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(__aarch64__)
  typedef __fp16 native __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
  return __builtin_convertvector(*(const native *)p, vec);
#else
  uvec half = __builtin_convertvector((half_vec)*(const loose_half_vec *)p, uvec);
  vec value = (vec)((half & 0x7fff) << 13) * 0x1p112f;
  uvec special = (uvec)((half & 0x7c00) == 0x7c00) & 0x7f800000;
  return (vec)((uvec)value | special | (half & 0x8000) << 16);
#endif
}

INLINE vec load_int8(const int8_t *p) {
#if defined(__AVX512F__)
  return to_float((ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
  return to_float((ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
  return to_float((ivec){p[0], p[1], p[2], p[3]});
#endif
}

// LANES elements from the given one on.
INLINE vec load_elements(const void *data, const enum element type, int64_t first) {
  if (type == INT8) return load_int8((const int8_t *)data + first);
  return type == FLOAT16 ? load_half((const uint16_t *)data + first) : load((const float *)data + first);
}

INLINE float element_at(const void *data, const enum element type, int64_t index) {
  if (type == INT8) return ((const int8_t *)data)[index];
  return type == FLOAT16 ? half_to_float(((const uint16_t *)data)[index]) : ((const float *)data)[index];
}

INLINE int64_t element_bytes(enum element type) { return type == INT8 ? 1 : type == FLOAT16 ? 2 : 4; }

INLINE const void *element(const void *data, enum element type, int64_t index) {
  return (const char *)data + index * element_bytes(type);
}

// To the nearest integer, ties to even; for |x| below 2^22.
INLINE vec rounded(vec x) { return (x + 12582912.0f) - 12582912.0f; }

// Writes x / scale, and returns the scale: the largest is 127 of it. A slot that is not finite gets the scale NaN, so
// that whoever reads it gets NaN too.
static float quantise(int8_t *restrict out, const float *restrict x, int64_t count) {
  vec most = {0}, poison = {0};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    most = larger(absolute(load(x + i)), most);
    poison += load(x + i) * 0.0f;
  }
  for (; i < count; i++) {
    most = larger(absolute(splat(x[i])), most);
    poison += splat(x[i]) * 0.0f;
  }
  float scale = largest(most) / 127.0f + sum(poison), factor = scale > 0 ? scale : INFINITY;
  for (i = 0; i + LANES <= count; i += LANES) {
    byte_vec bytes = __builtin_convertvector(to_int(rounded(load(x + i) / factor)), byte_vec);
    memcpy(out + i, &bytes, sizeof bytes);
  }
  for (; i < count; i++) out[i] = (int8_t)to_int(rounded(splat(x[i]) / factor))[0];
  return scale;
}

// Stores `count` floats as elements from the given one on; returns the scale of integers, and 1 of floats.
static inline float set_elements(void *data, enum element type, int64_t first, const float *x, int64_t count) {
  if (type == INT8) return quantise((int8_t *)data + first, x, count);
  if (type == FLOAT32)
    memcpy((float *)data + first, x, (size_t)count * sizeof(float));
  else
    for (int64_t i = 0; i < count; i++) ((uint16_t *)data)[first + i] = float_to_half(x[i]);
  return 1.0f;
}

#endif
