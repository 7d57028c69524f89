// Vectors of LANES floats, by the vector extensions of GCC and Clang: one source for every instruction set.
#ifndef EDGEMEM_VECTORS_H
#define EDGEMEM_VECTORS_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef float loose_vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t loose_ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE vec load(const float *p) { return *(const loose_vec *)p; }
INLINE void store(float *p, vec x) { *(loose_vec *)p = x; }
INLINE ivec iload(const int32_t *p) { return *(const loose_ivec *)p; }
INLINE vec splat(float x) { return x - (vec){0}; }
INLINE vec to_float(ivec x) { return __builtin_convertvector(x, vec); }
INLINE ivec to_int(vec x) { return __builtin_convertvector(x, ivec); }
INLINE vec where(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE vec larger(vec a, vec b) { return where(a > b, a, b); }

// A constant for each lane, computed from the lane's number.
#define LANES_4(F, s, o) F((o), s), F((o) + 1, s), F((o) + 2, s), F((o) + 3, s)
#if LANES == 16
#define EACH_LANE(F, s) LANES_4(F, s, 0), LANES_4(F, s, 4), LANES_4(F, s, 8), LANES_4(F, s, 12)
#elif LANES == 8
#define EACH_LANE(F, s) LANES_4(F, s, 0), LANES_4(F, s, 4)
#else
#define EACH_LANE(F, s) LANES_4(F, s, 0)
#endif

#define LANE_NUMBER(lane, s) (lane)
#define LANE_NUMBERS ((ivec){EACH_LANE(LANE_NUMBER, 0)})

// Lanes of a and b by constant numbers: 0 .. LANES - 1 are those of a, the rest those of b.
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, F, s) __builtin_shufflevector(a, b, EACH_LANE(F, s))
#else
#define PICK(a, b, F, s) __builtin_shuffle(a, b, (ivec){EACH_LANE(F, s)})
#endif

// With rows in a and b that differ in bit s of their number, and lanes likewise:
#define KEPT(lane, s) ((lane) & (s) ? LANES + (lane) : (lane))                 // a[l], b[l]
#define CROSSED(lane, s) ((lane) & (s) ? LANES + ((lane) ^ (s)) : ((lane) ^ (s)))  // a[l ^ s], b[l ^ s]
#define LOWER(lane, s) ((lane) & (s) ? LANES + ((lane) ^ (s)) : (lane))        // a[l], b[l ^ s]
#define UPPER(lane, s) ((lane) & (s) ? LANES + (lane) : ((lane) ^ (s)))        // a[l ^ s], b[l]

// One level of the sum of rows: lane l of rows[j] becomes x[l] + x[l ^ s] with x the row of 2j, 2j+1 that l's bit picks.
#define SUM_LEVEL(s)                                                                                           \
  _Pragma("GCC unroll 16") for (int j = 0; j < LANES / 2 / (s); j++) rows[j] =                                   \
      PICK(rows[2 * j], rows[2 * j + 1], KEPT, s) + PICK(rows[2 * j], rows[2 * j + 1], CROSSED, s)

// Lane l of the result is the sum of the lanes of rows[l]. Overwrites rows.
INLINE vec sum_rows(vec rows[LANES]) {
  SUM_LEVEL(1);
  SUM_LEVEL(2);
#if LANES >= 8
  SUM_LEVEL(4);
#endif
#if LANES >= 16
  SUM_LEVEL(8);
#endif
  return rows[0];
}

#define TRANSPOSE_LEVEL(s)                                         \
  _Pragma("GCC unroll 16") for (int j = 0; j < LANES; j++) if (!(j & (s))) { \
    vec low = rows[j], high = rows[j + (s)];                       \
    rows[j] = PICK(low, high, LOWER, s);                           \
    rows[j + (s)] = PICK(low, high, UPPER, s);                     \
  }

// Lane l of rows[j] changes places with lane j of rows[l].
INLINE void transpose(vec rows[LANES]) {
  TRANSPOSE_LEVEL(1)
  TRANSPOSE_LEVEL(2)
#if LANES >= 8
  TRANSPOSE_LEVEL(4)
#endif
#if LANES >= 16
  TRANSPOSE_LEVEL(8)
#endif
}

// The sum of all lanes, in the order of sum_rows.
INLINE float sum(vec x) {
  x += PICK(x, x, CROSSED, 1);
  x += PICK(x, x, CROSSED, 2);
#if LANES >= 8
  x += PICK(x, x, CROSSED, 4);
#endif
#if LANES >= 16
  x += PICK(x, x, CROSSED, 8);
#endif
  return x[0];
}

INLINE float largest(vec x) {
  x = larger(x, PICK(x, x, CROSSED, 1));
  x = larger(x, PICK(x, x, CROSSED, 2));
#if LANES >= 8
  x = larger(x, PICK(x, x, CROSSED, 4));
#endif
#if LANES >= 16
  x = larger(x, PICK(x, x, CROSSED, 8));
#endif
  return x[0];
}

// exp(x) for x <= 88, to 2 units in the last place. Below -87 it is 0: no denormals. NaN stays NaN.
INLINE vec vexp(vec x) {
  ivec vanishes = x < -87.0f;
  x = where(vanishes, splat(-87.0f), x);
  const vec rounding = splat(12582912.0f);  // 1.5 * 2^23: a sum with it has no fraction
  vec n = (x * 1.44269504f + rounding) - rounding;
  vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // log 2 in two parts
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  return (vec)(~vanishes & (ivec)(p * (vec)((uvec)(to_int(n) + 127) << 23)));
}

INLINE float exp_of(float x) { return vexp(splat(x))[0]; }

INLINE vec absolute(vec x) { return (vec)((ivec)x & INT32_MAX); }

// tanh(x): a continued fraction near 0, where the quotient of exponentials cancels.
INLINE vec vtanh(vec x) {
  vec size = absolute(x), square = x * x;
  vec near = size * (10395.0f + square * (1260.0f + square * 21.0f)) /
             (10395.0f + square * (4725.0f + square * (210.0f + square)));
  vec e = vexp(-2.0f * size);
  vec value = where(size < 0.625f, near, (1.0f - e) / (1.0f + e));
  return (vec)((ivec)value | ((ivec)x & INT32_MIN));
}

// 1 / (1 + exp(-x))
INLINE vec vsigmoid(vec x) {
  vec e = vexp(-absolute(x));
  return where(x < 0.0f, e, splat(1.0f)) / (1.0f + e);
}

// x / (1 + exp(-x))
INLINE vec vsilu(vec x) { return x * vsigmoid(x); }

// Cosine and sine of an angle in parts of 2^-32 of a turn. The quarter of the turn is exact, whatever the angle.
INLINE void vsincos(ivec angle, vec *cosine, vec *sine) {
  ivec quarter = (ivec)((uvec)angle + (1u << 29)) >> 30;
  ivec rest = (ivec)((uvec)angle - ((uvec)quarter << 30));
  vec x = to_float(rest) * 1.46291807926715968e-9f;  // 2 pi / 2^32; |x| <= pi / 4
  vec z = x * x;
  vec s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
  vec c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  ivec odd = (quarter & 1) != 0;
  ivec negative_sine = (ivec)((uvec)(quarter & 2) << 30);
  ivec negative_cosine = (ivec)((uvec)((quarter + 1) & 2) << 30);
  *sine = (vec)((ivec)where(odd, c, s) ^ negative_sine);
  *cosine = (vec)((ivec)where(odd, s, c) ^ negative_cosine);
}

#endif
